"""Who may do what: capabilities, seccomp, AppArmor and SELinux, from CRI's security context to words of the runtime spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cri_api.v1 import api_pb2 as api

from harness.linux.capabilities import BITS
from harness.minirt.cri.host import HostFacts
from harness.minirt.cri.seccomp import default_profile, read_profile
from harness.minirt.errors import InvalidArgument, Unsupported

DEFAULT_CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
    "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
)  # fmt: skip
_DEFAULT, _UNCONFINED, _LOCALHOST = "RuntimeDefault", "Unconfined", "Localhost"
_OLD_WORDS = {"runtime/default": _DEFAULT, "docker/default": _DEFAULT, "unconfined": _UNCONFINED}
_LOADED_PROFILES = Path("/sys/kernel/security/apparmor/profiles")
_DEFAULT_APPARMOR = ("cri-containerd.apparmor.d", "docker-default", "crio-default")
"""what engines load as their default, the best known first: one that is loaded already is used"""


def translate_capabilities(security: api.LinuxContainerSecurityContext, host: HostFacts) -> dict[str, list[str]]:
    """``process.capabilities``. Asked for with ALL: all that this daemon has itself.

    None is inheritable or ambient but those that are asked for as ambient: these reach a program that is not root's.
    """
    available = [name for name, bit in BITS.items() if host.capabilities >> bit & 1]
    asked = security.capabilities
    add, drop, ambient = (
        [_capability(name) for name in names]
        for names in (asked.add_capabilities, asked.drop_capabilities, asked.add_ambient_capabilities)
    )
    if security.privileged:
        granted = set(available)
    else:
        granted = set() if "CAP_ALL" in drop else set(available) if "CAP_ALL" in add else set(DEFAULT_CAPABILITIES)
        granted |= set(add)
        granted -= set(drop)
    granted |= set(ambient)
    if unknown := granted.difference(BITS, ["CAP_ALL"]):
        raise InvalidArgument(f"unknown capabilities: {', '.join(sorted(unknown))}")
    if "CAP_ALL" in ambient:
        ambient = sorted(granted)
    names = [name for name in available if name in granted]
    kept = [name for name in names if name in ambient]
    return {**dict.fromkeys(("bounding", "effective", "permitted"), names), "inheritable": kept, "ambient": kept}


def _capability(name: str) -> str:
    name = name.upper()
    return name if name.startswith("CAP_") else f"CAP_{name}"


def translate_seccomp(security: api.LinuxContainerSecurityContext, capabilities: list[str]) -> dict[str, Any] | None:
    """``linux.seccomp``; None for no filter, which is also what a client that says nothing gets."""
    if security.privileged:
        return None
    found = _profile(
        "seccomp", security.seccomp if security.HasField("seccomp") else None, security.seccomp_profile_path
    )
    if found is None or found[0] == _UNCONFINED:
        return None
    kind, name = found
    return default_profile(capabilities) if kind == _DEFAULT else read_profile(name)


def translate_apparmor(security: api.LinuxContainerSecurityContext, host: HostFacts) -> str:
    """``process.apparmorProfile``; empty for none. Raises `Unsupported` where one is asked for that cannot be had."""
    found = _profile(
        "apparmor", security.apparmor if security.HasField("apparmor") else None, security.apparmor_profile
    )
    if not host.apparmor:
        if found is not None and found[0] != _UNCONFINED:
            raise Unsupported("apparmor is not supported: this machine's kernel does not have it, or not enabled")
        return ""
    kind, name = found or (_DEFAULT, "")
    if kind == _UNCONFINED or (kind == _DEFAULT and security.privileged):
        return ""
    loaded = {line.rpartition(" (")[0] for line in _LOADED_PROFILES.read_text().splitlines()}
    if kind == _LOCALHOST:
        if name not in loaded:
            raise InvalidArgument(f"apparmor profile not found: {name!r} is not loaded")
        return name
    usable = next((profile for profile in _DEFAULT_APPARMOR if profile in loaded), "")
    if not usable and found is not None:
        raise Unsupported(f"apparmor: RuntimeDefault needs one of {', '.join(_DEFAULT_APPARMOR)} to be loaded")
    return usable


def check_selinux(security: api.LinuxContainerSecurityContext, host: HostFacts) -> None:
    """Refuse SELinux options where the kernel would know them; where it has no SELinux they mean nothing, as in containerd.

    Raises `Unsupported`: minirt labels neither images nor what pods share, without which a label locks a container out.
    """
    options = security.selinux_options
    if host.selinux and (options.user or options.role or options.type or options.level):
        raise Unsupported("selinux_options are not supported: minirt's containers have the label of the daemon")


def _profile(field: str, profile: api.SecurityProfile | None, old: str) -> tuple[str, str] | None:
    """What kind of profile is asked for, and its name if it is one of the host's; None where nothing is said."""
    if profile is not None:
        kind = api.SecurityProfile.ProfileType.Name(profile.profile_type)
        if kind != _LOCALHOST and profile.localhost_ref:
            raise InvalidArgument(f"{field}: localhost_ref can only be given with the type Localhost")
        name = profile.localhost_ref
    elif not old:
        return None
    else:
        kind = _OLD_WORDS.get(old.lower(), _LOCALHOST)
        name = old
        if kind == _LOCALHOST and not old.startswith("localhost/"):
            raise InvalidArgument(f"{field} profile {old!r} is not understood")
    if kind != _LOCALHOST:
        return kind, ""
    name = name.removeprefix("localhost/")
    if not name:
        raise InvalidArgument(f"{field}: a profile of the type Localhost needs a localhost_ref")
    return kind, name
