"""config.json as frozen records: what the runtime specification's Linux part says, checked before anything is made.

`parse_spec` takes the parsed document and raises `SpecError` with the JSON path for the first thing that is invalid;
fields that nobody knows are ignored, as the specification demands. Limits (`linux.resources`) are in `resources`.
"""

from __future__ import annotations

import stat

from harness.linux import lean as os
from harness.linux.namespaces import FLAGS
from harness.minirt.container.hooks import NAMES as HOOKS
from harness.minirt.container.hooks import Hook
from harness.minirt.container.options import PROPAGATION, MountOptions, parse_options
from harness.minirt.container.process import Process, User, parse_environment, parse_process
from harness.minirt.container.reader import Reader
from harness.minirt.container.record import Record
from harness.minirt.container.resources import Resources, parse_resources
from harness.minirt.container.rootfs import refusal_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.minirt.container.rdt import IntelRdt
    from harness.minirt.container.scheduling import MemoryPolicy

SPEC_VERSION = "1.3.0"

NAMESPACES = {"network" if kind == "net" else "mount" if kind == "mnt" else kind: kind for kind in FLAGS}
"""What config.json calls a kind of namespace → what the kernel calls it."""

DEVICE_KINDS = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
PERSONALITIES = {"LINUX": 0, "LINUX32": 8}
_MOST_MAPS = 340
"""lines of a uid_map (user_namespaces(7))"""
_ALL_IDS = 1 << 32
_MOST_MAJOR, _MOST_MINOR = (1 << 12) - 1, (1 << 20) - 1
"""of a device number: the kernel cuts off what is above"""
_MOST_DATA = 4094
"""bytes of what mount(2) hands to a file system: a page, less its ends"""
_MOST_OFFSET_S = (1 << 63) // 1_000_000_000 // 2


class IdMap(Record):
    inside: int
    outside: int
    size: int


class Mount(Record):
    destination: str
    type: str
    source: str
    options: MountOptions
    uid_maps: tuple[IdMap, ...] = ()
    gid_maps: tuple[IdMap, ...] = ()


class Device(Record):
    path: str
    mode: int
    """type and permission bits, as mknod(2) takes them"""
    major: int
    minor: int
    uid: int = 0
    gid: int = 0


class Namespace(Record):
    kind: str
    """as in ``/proc/PID/ns``"""
    path: str = ""
    """of an existing one to join; empty: a new one"""


class Spec(Record):
    """A whole config.json."""

    version: str
    root: str
    """absolute path of the root filesystem"""
    root_readonly: bool = False
    process: Process | None = None
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[Mount, ...] = ()
    hooks: dict[str, tuple[Hook, ...]] = {}  # noqa: RUF012
    annotations: dict[str, str] = {}  # noqa: RUF012
    namespaces: tuple[Namespace, ...] = ()
    uid_maps: tuple[IdMap, ...] = ()
    gid_maps: tuple[IdMap, ...] = ()
    time_offsets: dict[str, tuple[int, int]] = {}  # noqa: RUF012
    devices: tuple[Device, ...] = ()
    cgroups_path: str = ""
    resources: Resources = Resources()
    rootfs_propagation: int = 0
    seccomp: dict[str, Any] | None = None
    """linux.seccomp as it stands: `seccomp.parse_profile` reads it"""
    sysctl: dict[str, str] = {}  # noqa: RUF012
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    personality: int | None = None
    mount_label: str = ""
    net_devices: dict[str, str] = {}  # noqa: RUF012
    """the name of a device of the machine → its name in the container"""
    memory_policy: MemoryPolicy | None = None
    intel_rdt: IntelRdt | None = None
    warnings: tuple[str, ...] = ()

    def namespace(self, kind: str) -> Namespace | None:
        """The entry for a kind, if there is one."""
        for entry in self.namespaces:
            if entry.kind == kind:
                return entry
        return None


def parse_spec(document: Any, bundle: str) -> Spec:
    """The spec in a config.json; relative paths in it start at `bundle` (absolute)."""
    top = Reader(document)
    version = _version(top)
    root = top.object("root")
    if root is None:
        raise top.fail("root", "is missing")
    root_path = root.text("path")
    if not root_path:
        raise root.fail("path", "is missing")
    entry = top.object("process")
    process = None if entry is None else parse_process(entry)
    linux = top.object("linux") or Reader({}, "linux")
    namespaces = _namespaces(linux)
    kinds = {entry.kind for entry in namespaces}
    hostname, domainname = top.text("hostname"), top.text("domainname")
    if (hostname or domainname) and "uts" not in kinds:
        raise top.fail("hostname" if hostname else "domainname", "cannot be set without a uts namespace")
    for name, value in (("hostname", hostname), ("domainname", domainname)):
        if len(value.encode()) > 64:  # __NEW_UTS_LEN
            raise top.fail(name, "is longer than 64 bytes")
    uid_maps, gid_maps = _id_maps(linux, "uidMappings"), _id_maps(linux, "gidMappings")
    _check_maps(linux, namespaces, uid_maps, gid_maps, process)
    if "mnt" not in kinds:
        _check_shared_mounts(linux)
    propagation = linux.text("rootfsPropagation")
    if propagation and propagation not in PROPAGATION:
        raise linux.fail("rootfsPropagation", f"{propagation!r} is none of {', '.join(PROPAGATION)}")
    seccomp = linux.object("seccomp")
    may_map = "user" in kinds
    mounts = top.list("mounts", lambda entry: _mount(entry, bundle, _join(bundle, root_path), may_map))
    annotations = top.pairs("annotations")
    if "" in annotations:
        raise top.fail("annotations", "has a key that is empty")
    warnings = () if process is None else process.warnings
    persona = linux.object("personality")
    if persona is not None and persona.texts("flags"):
        warnings += ("linux.personality.flags: none is supported, they are ignored",)
    for index, mount in enumerate(mounts):
        if mount.options.bind and mount.options.data:
            warnings += (f"mounts[{index}].options: a bind mount has no {mount.options.data!r}, which is ignored",)
    return Spec(
        version=version,
        root=_join(bundle, root_path),
        root_readonly=root.flag("readonly"),
        process=process,
        hostname=hostname,
        domainname=domainname,
        mounts=mounts,
        hooks=_hooks(top),
        annotations=annotations,
        namespaces=namespaces,
        uid_maps=uid_maps,
        gid_maps=gid_maps,
        time_offsets=_time_offsets(linux, namespaces),
        devices=linux.list("devices", _device),
        cgroups_path=linux.text("cgroupsPath"),
        resources=parse_resources(linux.object("resources") or Reader({}, "linux.resources")),
        rootfs_propagation=PROPAGATION.get(propagation, 0),
        seccomp=None if seccomp is None else dict(seccomp.value),
        sysctl=_sysctl(linux, namespaces),
        masked_paths=_absolute(linux, "maskedPaths"),
        readonly_paths=_absolute(linux, "readonlyPaths"),
        personality=None if persona is None else persona.choice("domain", PERSONALITIES),
        mount_label=linux.text("mountLabel"),
        net_devices=_net_devices(linux, kinds),
        memory_policy=_memory_policy(linux),
        intel_rdt=_intel_rdt(linux),
        warnings=warnings,
    )


def _version(top: Reader) -> str:
    """``ociVersion``: a semantic version 2.0.0 of the specification's first major one."""
    version = top.text("ociVersion")
    core, plus, build = version.partition("+")
    core, dash, pre = core.partition("-")
    numbers = core.split(".")
    if (
        len(numbers) != 3
        or not all(map(_is_number, numbers))
        or (plus and not all(map(_is_identifier, build.split("."))))
        or (
            dash
            and not all(_is_identifier(word) and (not word.isdigit() or _is_number(word)) for word in pre.split("."))
        )
    ):
        raise top.fail("ociVersion", f"{version!r} is not a semantic version" if version else "is missing")
    if numbers[0] != "1":
        raise top.fail("ociVersion", f"{version} is not supported, 1.x.y is")
    return version


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and (word == "0" or word[0] != "0")


def _is_identifier(word: str) -> bool:
    return word.isascii() and word.replace("-", "0").isalnum()


def _join(folder: str, path: str) -> str:
    return path if path.startswith("/") else f"{folder.rstrip('/')}/{path}"


def _absolute(linux: Reader, key: str) -> tuple[str, ...]:
    paths = linux.texts(key)
    for index, path in enumerate(paths):
        if not path.startswith("/"):
            raise linux.fail(f"{key}[{index}]", f"{path!r} is not an absolute path")
    return paths


def _id_map(entry: Reader) -> IdMap:
    inside, outside, size = entry.count("containerID"), entry.count("hostID"), entry.count("size")
    if not size or max(inside, outside) + size > _ALL_IDS:
        raise entry.fail("size", "has to be at least 1" if not size else "leads beyond the last id")
    return IdMap(inside, outside, size)


def _id_maps(entry: Reader, key: str) -> tuple[IdMap, ...]:
    maps = entry.list(key, _id_map)
    if len(maps) > _MOST_MAPS:
        raise entry.fail(key, f"has more than {_MOST_MAPS} entries")
    for side in ("inside", "outside"):
        last = -1
        for item in sorted(maps, key=lambda item: getattr(item, side)) if len(maps) > 1 else ():
            if getattr(item, side) <= last:
                raise entry.fail(key, f"maps an id twice: {getattr(item, side)} {side} of the container")
            last = getattr(item, side) + item.size - 1
    return maps


def _check_maps(
    linux: Reader,
    namespaces: tuple[Namespace, ...],
    uid_maps: tuple[IdMap, ...],
    gid_maps: tuple[IdMap, ...],
    process: Process | None,
) -> None:
    """Mappings belong to a user namespace; a new one needs some, for those ids that the container needs."""
    own = next((entry for entry in namespaces if entry.kind == "user"), None)
    if own is None:
        if uid_maps or gid_maps:
            raise linux.fail("uidMappings" if uid_maps else "gidMappings", "means nothing without a user namespace")
        return
    if own.path:
        return
    if not (uid_maps and gid_maps):
        raise linux.fail("uidMappings", "and gidMappings are needed for a new user namespace")
    user = User() if process is None else process.user
    wanted = (("uidMappings", uid_maps, (0, user.uid)), ("gidMappings", gid_maps, (0, user.gid, *user.groups)))
    for key, maps, ids in wanted:
        for id in ids:
            if not any(item.inside <= id < item.inside + item.size for item in maps):
                raise linux.fail(key, f"leaves out {id}, which the container needs")


def _check_shared_mounts(linux: Reader) -> None:
    """A container in the runtime's own mount namespace cannot have what it would do to the machine's root."""
    if linux.text("rootfsPropagation"):
        raise linux.fail("rootfsPropagation", "cannot be set without a mount namespace")


def _mount(entry: Reader, bundle: str, root: str, may_map: bool) -> Mount:
    destination = entry.text("destination")
    if not destination:
        raise entry.fail("destination", "is missing")
    if not destination.startswith("/"):
        # Deprecated, but "it MAY be a relative path, in which case it MUST be interpreted as relative to /".
        destination = "/" + destination
    if f"{destination}/".startswith(f"{root.rstrip('/')}/"):
        # There are callers who write where it is for the machine, and runc takes it.
        destination = destination[len(root.rstrip("/")) :] or "/"
    words = entry.texts("options")
    options = parse_options(words)
    kind, source = entry.text("type"), entry.text("source")
    if kind == "bind" and not options.bind:
        options = parse_options(("bind", *words))
    if options.bind:
        if not source and not options.remount:
            raise entry.fail("source", "is needed for a bind mount")
        source = _join(bundle, source)
    elif not kind and not options.remount:
        raise entry.fail("type", "is missing")
    if len(options.data) > _MOST_DATA and kind != "overlay":
        raise entry.fail("options", f"are longer than {_MOST_DATA} bytes for the file system")
    # The others are plainly elsewhere.
    delicate = destination.startswith("/proc") or "//" in destination or "/." in destination or destination == "/"
    if delicate and not options.remount:
        refusal = refusal_of(os.path.normpath("/" + destination.strip("/")), kind, options.bind)
        if refusal:
            raise entry.fail("destination", refusal)
    if not (options.idmap or entry.has("uidMappings") or entry.has("gidMappings")):
        return Mount(destination, kind, source, options)
    maps = _id_maps(entry, "uidMappings"), _id_maps(entry, "gidMappings")
    if bool(maps[0]) != bool(maps[1]):
        raise entry.fail("uidMappings", "and gidMappings have to be given together")
    if maps[0] or options.idmap:
        if not options.bind and kind != "overlay":
            raise entry.fail("options" if options.idmap else "uidMappings", "only bind mounts can have mapped ids")
        if not maps[0] and not may_map:
            raise entry.fail("options", f"{options.idmap} needs uidMappings and gidMappings, or a user namespace")
    return Mount(destination, kind, source, options, *maps)


def _hooks(top: Reader) -> dict[str, tuple[Hook, ...]]:
    entry = top.object("hooks")
    if entry is None:
        return {}

    def one(hook: Reader) -> Hook:
        path = hook.text("path")
        if not path.startswith("/"):
            raise hook.fail("path", f"{path!r} is not an absolute path" if path else "is missing")
        timeout_s = hook.number("timeout")
        if timeout_s is not None and timeout_s <= 0:
            raise hook.fail("timeout", "has to be above 0")
        env = parse_environment(hook) if hook.value.get("env") is not None else None
        return Hook(path, hook.texts("args"), env, timeout_s)

    return {name: hooks for name in HOOKS if (hooks := entry.list(name, one))}


def _namespaces(linux: Reader) -> tuple[Namespace, ...]:
    def one(entry: Reader) -> Namespace:
        path = entry.text("path")
        if path and not path.startswith("/"):
            raise entry.fail("path", f"{path!r} is not an absolute path")
        return Namespace(entry.choice("type", NAMESPACES), path)

    entries = linux.list("namespaces", one)
    seen: set[str] = set()
    for index, entry in enumerate(entries):
        if entry.kind in seen:
            raise linux.fail(f"namespaces[{index}].type", "stands there twice")
        seen.add(entry.kind)
    return entries


def _time_offsets(linux: Reader, namespaces: tuple[Namespace, ...]) -> dict[str, tuple[int, int]]:
    entry = linux.object("timeOffsets")
    if entry is None or not entry.value:
        return {}
    if not any(known.kind == "time" and not known.path for known in namespaces):
        raise linux.fail("timeOffsets", "needs a new time namespace")
    offsets = {}
    for clock in entry.value:
        if clock not in ("monotonic", "boottime"):
            raise entry.fail(clock, "is not a clock that has an offset")
        offset = entry.object(clock) or Reader({}, entry.at(clock))
        # Below, the clock would stand before its beginning: that depends on how long the machine runs.
        secs = offset.number("secs", least=-_MOST_OFFSET_S, most=_MOST_OFFSET_S)
        offsets[clock] = secs or 0, offset.count("nanosecs", most=999_999_999)
    return offsets


def _device(entry: Reader) -> Device:
    path = entry.text("path")
    if not path.startswith("/"):
        raise entry.fail("path", f"{path!r} is not an absolute path" if path else "is missing")
    if path.rstrip("/").rpartition("/")[2] in ("", ".", ".."):
        raise entry.fail("path", f"{path!r} cannot be a file")
    kind = entry.choice("type", DEVICE_KINDS)
    mode = entry.number("fileMode", least=0, most=0o177777)
    numbers = (0, 0)
    if kind != stat.S_IFIFO:
        for key in ("major", "minor"):
            if not entry.has(key):
                raise entry.fail(key, "is missing")
        numbers = entry.count("major", most=_MOST_MAJOR), entry.count("minor", most=_MOST_MINOR)
    return Device(
        path, kind | (0o666 if mode is None else mode & 0o7777), *numbers, entry.count("uid"), entry.count("gid")
    )


def _sysctl(linux: Reader, namespaces: tuple[Namespace, ...]) -> dict[str, str]:
    if not linux.has("sysctl"):
        return {}
    from harness.minirt.container.sysctl import parse_sysctl

    return parse_sysctl(linux, namespaces)


def _net_devices(linux: Reader, kinds: set[str]) -> dict[str, str]:
    entry = linux.object("netDevices")
    if entry is None or not entry.value:
        return {}
    if "net" not in kinds:
        raise linux.fail("netDevices", "cannot be moved without a network namespace of the container's own")
    from harness.minirt.container.netdevices import parse_devices

    return parse_devices(entry)


def _memory_policy(linux: Reader) -> MemoryPolicy | None:
    entry = linux.object("memoryPolicy")
    if entry is None:
        return None
    from harness.minirt.container.scheduling import parse_memory_policy

    return parse_memory_policy(entry)


def _intel_rdt(linux: Reader) -> IntelRdt | None:
    entry = linux.object("intelRdt")
    if entry is None:
        return None
    from harness.minirt.container.rdt import parse_rdt

    return parse_rdt(entry)
