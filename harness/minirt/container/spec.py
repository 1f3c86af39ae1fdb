"""config.json as frozen records: what the runtime specification's Linux part says, checked before anything is made.

`parse_spec` takes the parsed document and raises `SpecError` with the JSON path for the first thing that is invalid;
fields that nobody knows are ignored, as the specification demands. Limits (`linux.resources`) are in `resources`.
"""

from __future__ import annotations

import stat

from harness.linux.capabilities import BITS
from harness.linux.namespaces import FLAGS
from harness.minirt.container.hooks import Hook
from harness.minirt.container.options import PROPAGATION, MountOptions, parse_options
from harness.minirt.container.reader import Reader
from harness.minirt.container.record import Record
from harness.minirt.container.resources import Resources, parse_resources
from harness.minirt.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SPEC_VERSION = "1.2.1"

NAMESPACES = {"network" if kind == "net" else "mount" if kind == "mnt" else kind: kind for kind in FLAGS}
"""What config.json calls a kind of namespace → what the kernel calls it."""

RLIMITS = {
    name: number
    for number, name in enumerate(
        (
            "RLIMIT_CPU",
            "RLIMIT_FSIZE",
            "RLIMIT_DATA",
            "RLIMIT_STACK",
            "RLIMIT_CORE",
            "RLIMIT_RSS",
            "RLIMIT_NPROC",
            "RLIMIT_NOFILE",
            "RLIMIT_MEMLOCK",
            "RLIMIT_AS",
            "RLIMIT_LOCKS",
            "RLIMIT_SIGPENDING",
            "RLIMIT_MSGQUEUE",
            "RLIMIT_NICE",
            "RLIMIT_RTPRIO",
            "RLIMIT_RTTIME",
        )
    )
}
_ANY_DEVICE_KIND = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
_PERSONALITIES = {"LINUX": 0, "LINUX32": 8}
_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")


class User(Record):
    uid: int = 0
    gid: int = 0
    umask: int | None = None
    groups: tuple[int, ...] = ()


class Capabilities(Record):
    """Bit masks of the five sets."""

    bounding: int = 0
    effective: int = 0
    permitted: int = 0
    inheritable: int = 0
    ambient: int = 0


class Rlimit(Record):
    resource: int
    soft: int
    hard: int


class Process(Record):
    """What is executed. `capabilities` None: those of the caller stay."""

    args: tuple[str, ...]
    cwd: str
    env: tuple[str, ...] = ()
    user: User = User()
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    oom_score_adj: int | None = None
    terminal: bool = False
    console_size: tuple[int, int] | None = None
    """rows, columns"""
    apparmor: str = ""
    selinux: str = ""


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

    def namespace(self, kind: str) -> Namespace | None:
        """The entry for a kind, if there is one."""
        for entry in self.namespaces:
            if entry.kind == kind:
                return entry
        return None


def parse_spec(document: Any, bundle: str) -> Spec:
    """The spec in a config.json; relative paths in it start at `bundle` (absolute)."""
    top = Reader(document)
    version = top.text("ociVersion")
    parts = version.split("-")[0].split(".")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise top.fail("ociVersion", f"{version!r} is not a semantic version")
    if parts[0] != "1":
        raise top.fail("ociVersion", f"{version} is not supported, 1.x.y is")
    root = top.object("root")
    if root is None:
        raise top.fail("root", "is missing")
    root_path = root.text("path")
    if not root_path:
        raise root.fail("path", "is missing")
    process = top.object("process")
    linux = top.object("linux") or Reader({}, "linux")
    namespaces = _namespaces(linux)
    kinds = {entry.kind for entry in namespaces}
    hostname, domainname = top.text("hostname"), top.text("domainname")
    if (hostname or domainname) and "uts" not in kinds:
        raise top.fail("hostname" if hostname else "domainname", "cannot be set without a uts namespace")
    propagation = linux.text("rootfsPropagation")
    if propagation and propagation not in PROPAGATION:
        raise linux.fail("rootfsPropagation", f"{propagation!r} is none of {', '.join(PROPAGATION)}")
    if linux.has("intelRdt"):
        raise linux.fail("intelRdt", "is not supported")
    persona = linux.object("personality")
    seccomp = linux.object("seccomp")
    mounts = top.list("mounts", lambda entry: _mount(entry, bundle))
    if mounts and "mnt" not in kinds:
        raise top.fail("mounts", "cannot be made without a mount namespace")
    uid_maps, gid_maps = linux.list("uidMappings", _id_map), linux.list("gidMappings", _id_map)
    for entry in namespaces:
        if entry.kind == "user" and not entry.path and not (uid_maps and gid_maps):
            raise linux.fail("uidMappings", "and gidMappings are needed for a new user namespace")
    return Spec(
        version=version,
        root=_join(bundle, root_path),
        root_readonly=root.flag("readonly"),
        process=None if process is None else parse_process(process),
        hostname=hostname,
        domainname=domainname,
        mounts=mounts,
        hooks=_hooks(top),
        annotations=top.pairs("annotations"),
        namespaces=namespaces,
        uid_maps=uid_maps,
        gid_maps=gid_maps,
        time_offsets=_time_offsets(linux),
        devices=linux.list("devices", _device),
        cgroups_path=linux.text("cgroupsPath"),
        resources=parse_resources(linux.object("resources") or Reader({})),
        rootfs_propagation=PROPAGATION.get(propagation, 0),
        seccomp=None if seccomp is None else dict(seccomp.value),
        sysctl=_sysctl(linux, kinds),
        masked_paths=_absolute(linux, "maskedPaths"),
        readonly_paths=_absolute(linux, "readonlyPaths"),
        personality=None if persona is None else persona.choice("domain", _PERSONALITIES),
        mount_label=linux.text("mountLabel"),
    )


def parse_process(entry: Reader) -> Process:
    """``process``, of a config.json or alone (as `exec --process` has it)."""
    args = entry.texts("args")
    if not args or not args[0]:
        raise entry.fail("args", "needs at least one word")
    cwd = entry.text("cwd")
    if not cwd.startswith("/"):
        raise entry.fail("cwd", f"{cwd!r} is not an absolute path")
    user = entry.object("user") or Reader({})
    most = (1 << 32) - 2
    size = entry.object("consoleSize")
    return Process(
        args=args,
        cwd=cwd,
        env=entry.texts("env"),
        user=User(
            user.count("uid", most=most),
            user.count("gid", most=most),
            user.number("umask", least=0, most=0o777),
            user.numbers("additionalGids", most),
        ),
        capabilities=_capabilities(entry),
        rlimits=_rlimits(entry),
        no_new_privileges=entry.flag("noNewPrivileges"),
        oom_score_adj=entry.number("oomScoreAdj", least=-1000, most=1000),
        terminal=entry.flag("terminal"),
        console_size=None if size is None else (size.count("height", most=65535), size.count("width", most=65535)),
        apparmor=entry.text("apparmorProfile"),
        selinux=entry.text("selinuxLabel"),
    )


def _join(folder: str, path: str) -> str:
    return path if path.startswith("/") else f"{folder.rstrip('/')}/{path}"


def _absolute(linux: Reader, key: str) -> tuple[str, ...]:
    paths = linux.texts(key)
    for index, path in enumerate(paths):
        if not path.startswith("/"):
            raise linux.fail(f"{key}[{index}]", f"{path!r} is not an absolute path")
    return paths


def _capabilities(process: Reader) -> Capabilities | None:
    entry = process.object("capabilities")
    if entry is None:
        return None
    masks = {}
    for name in ("bounding", "effective", "permitted", "inheritable", "ambient"):
        masks[name] = 0
        for word in entry.texts(name):
            # A capability that nobody knows is left out, as the specification's warning for it demands.
            masks[name] |= 1 << BITS[word] if word in BITS else 0
    return Capabilities(**masks)


def _rlimits(process: Reader) -> tuple[Rlimit, ...]:
    def one(entry: Reader) -> Rlimit:
        resource = entry.choice("type", RLIMITS)
        soft, hard = entry.count("soft", most=(1 << 64) - 1), entry.count("hard", most=(1 << 64) - 1)
        if soft > hard:
            raise entry.fail("soft", f"{soft} is above the hard limit {hard}")
        return Rlimit(resource, soft, hard)

    limits = process.list("rlimits", one)
    seen: set[int] = set()
    for index, limit in enumerate(limits):
        if limit.resource in seen:
            raise process.fail(f"rlimits[{index}].type", "stands there twice")
        seen.add(limit.resource)
    return limits


def _id_map(entry: Reader) -> IdMap:
    size = entry.count("size")
    if not size:
        raise entry.fail("size", "has to be at least 1")
    return IdMap(entry.count("containerID"), entry.count("hostID"), size)


def _mount(entry: Reader, bundle: str) -> Mount:
    destination = entry.text("destination")
    if not destination:
        raise entry.fail("destination", "is missing")
    if not destination.startswith("/"):
        # Not absolute is invalid by the specification, but all runtimes take it as below the root.
        destination = "/" + destination
    options = parse_options(entry.texts("options"))
    kind, source = entry.text("type"), entry.text("source")
    if kind == "bind" and not options.bind:
        options = parse_options(("bind", *entry.texts("options")))
    if options.bind:
        if not source:
            raise entry.fail("source", "is needed for a bind mount")
        source = _join(bundle, source)
    elif not kind:
        raise entry.fail("type", "is missing")
    maps = entry.list("uidMappings", _id_map), entry.list("gidMappings", _id_map)
    if bool(maps[0]) != bool(maps[1]):
        raise entry.fail("uidMappings", "and gidMappings have to be given together")
    return Mount(destination, kind, source, options, *maps)


def _hooks(top: Reader) -> dict[str, tuple[Hook, ...]]:
    entry = top.object("hooks")
    if entry is None:
        return {}

    def one(hook: Reader) -> Hook:
        path = hook.text("path")
        if not path.startswith("/"):
            raise hook.fail("path", f"{path!r} is not an absolute path")
        timeout_s = hook.number("timeout")
        if timeout_s is not None and timeout_s <= 0:
            raise hook.fail("timeout", "has to be above 0")
        return Hook(path, hook.texts("args"), hook.texts("env"), timeout_s)

    return {name: hooks for name in _HOOKS if (hooks := entry.list(name, one))}


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


def _time_offsets(linux: Reader) -> dict[str, tuple[int, int]]:
    entry = linux.object("timeOffsets")
    offsets = {}
    for clock in entry.value if entry is not None else ():
        assert entry is not None
        if clock not in ("monotonic", "boottime"):
            raise entry.fail(clock, "is not a clock that has an offset")
        offset = entry.object(clock) or Reader({})
        offsets[clock] = offset.number("secs") or 0, offset.count("nanosecs", most=999_999_999)
    return offsets


def _device(entry: Reader) -> Device:
    path = entry.text("path")
    if not path.startswith("/"):
        raise entry.fail("path", f"{path!r} is not an absolute path")
    kind = entry.choice("type", _ANY_DEVICE_KIND)
    mode = entry.number("fileMode", least=0, most=0o177777)
    return Device(
        path,
        kind | (0o666 if mode is None else mode & 0o7777),
        entry.count("major"),
        entry.count("minor"),
        entry.count("uid"),
        entry.count("gid"),
    )


_IPC_SYSCTLS = frozenset(
    f"kernel.{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem", "shm_rmid_forced", "shmall", "shmmax", "shmmni")
)


def _sysctl(linux: Reader, kinds: set[str]) -> dict[str, str]:
    """Only what belongs to a namespace of the container's may be set: anything else would change the machine."""
    values = linux.pairs("sysctl")
    for name in values:
        dotted = name.replace("/", ".")
        if ".." in dotted or not dotted.strip("."):
            raise SpecError(f"{linux.at('sysctl')}[{name!r}]", "is not a sysctl's name")
        if dotted.startswith("net."):
            kind = "net"
        elif dotted.startswith("fs.mqueue.") or dotted in _IPC_SYSCTLS:
            kind = "ipc"
        elif dotted == "kernel.domainname":
            kind = "uts"
        elif dotted.startswith("user."):
            kind = "user"
        else:
            raise SpecError(f"{linux.at('sysctl')}[{name!r}]", "is not in a separate kernel namespace")
        if kind not in kinds:
            raise SpecError(f"{linux.at('sysctl')}[{name!r}]", f"needs a {kind} namespace of the container's own")
    return values
