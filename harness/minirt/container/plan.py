"""From a `Spec` to a `Plan`: everything that will be done for a container, as data.

`make_plan` decides; nothing is created by it, and what it refuses (`SpecError`, `Unsupported`) has no trace. The order of the
steps is the only knowledge here: which needs the machine's own /proc, which a privilege that a later one gives up.
"""

from __future__ import annotations

from harness.linux import lean as os
from harness.linux import syscalls as sys
from harness.linux.capabilities import BITS
from harness.linux.namespaces import FLAGS, identity
from harness.minirt.container import cgroup as cgroups
from harness.minirt.container import document, hiding, mounting, nodes, operations, program
from harness.minirt.container.cgroup import Cgroup, Layout
from harness.minirt.container.hooks import Hook
from harness.minirt.container.idmap import OF_THE_CONTAINER, Maps
from harness.minirt.container.options import Attributes
from harness.minirt.container.privileges import (
    capability_warnings,
    check_selinux,
    memory_step,
    privilege_step,
    process_steps,
    scheduling_is_wanted,
)
from harness.minirt.container.process import RLIMITS, Process
from harness.minirt.container.record import Record
from harness.minirt.container.spec import Device, IdMap, Mount, Spec
from harness.minirt.errors import SpecError, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from harness.minirt.container import seccomp
    from harness.minirt.container.operations import Operation
    from harness.minirt.container.rdt import Group
    from harness.minirt.container.resources import Resources
    from harness.minirt.container.rights import Rights

_CHAR = 0o020000
_DEFAULT_DEVICES = tuple(
    [
        Device(f"/dev/{name}", _CHAR | 0o666, major, minor)
        for name, major, minor in (
            ("null", 1, 3),
            ("zero", 1, 5),
            ("full", 1, 7),
            ("random", 1, 8),
            ("urandom", 1, 9),
            ("tty", 5, 0),
        )
    ]
)
_DEFAULT_LINKS = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
)
_RLIMIT_NAMES = {number: name for name, number in RLIMITS.items()}


class Plan(Record):
    """What `launch` carries out.

    `setup` is performed by the child before it waits at the gate (if any), `finish` after. `clone_flags` are the namespaces
    that are made at birth, `joins` those that exist: kind → path. `foyer`, where there is any, is performed before the birth
    by a process in between: it is the way into a user namespace, after what only the machine's root can do.
    """

    id: str
    cgroup: Cgroup
    layout: Layout
    resources: Resources
    clone_flags: int
    joins: dict[str, str]
    uid_maps: tuple[IdMap, ...]
    gid_maps: tuple[IdMap, ...]
    setup: tuple[Operation, ...]
    finish: tuple[Operation, ...]
    program: program.Program
    hooks: dict[str, tuple[Hook, ...]]
    bundle: str
    root: str
    annotations: dict[str, str]
    version: str
    terminal: bool
    foyer: tuple[Operation, ...] = ()
    preserved_fds: int = 0
    seccomp: seccomp.Compiled | None = None
    process: Process | None = None
    time_offsets: dict[str, tuple[int, int]] = {}  # noqa: RUF012
    net_devices: dict[str, str] = {}  # noqa: RUF012
    rdt: Group | None = None
    warnings: tuple[str, ...] = ()
    shortfalls: tuple[str, ...] = ()
    """what of the config the caller's rights do not reach to"""
    limits_devices: bool = True


def make_plan(
    spec: Spec,
    *,
    id: str,
    bundle: str,
    layout: Layout,
    pivot: bool = True,
    new_keyring: bool = True,
    preserved_fds: int = 0,
    seccomp_cache: str = "",
    overlay: str = "",
    counted: tuple[str, ...] = (),
    rights: Rights | None = None,
) -> Plan:
    """The plan for a container. `seccomp_cache`: a folder for compiled filters, if there is one. `overlay`: options of
    overlayfs, where the root is to be stacked from layers in the container's own mount namespace. `counted`: as for
    `cgroup.place_of`. `rights`: those of a caller who is not the machine's root, if so.

    Raises `SpecError`, `Unsupported` and `CgroupError`; nothing has been made then.
    """
    process = spec.process
    new = [entry.kind for entry in spec.namespaces if not entry.path]
    joins = {entry.kind: entry.path for entry in spec.namespaces if entry.path}
    _check_joins(spec)
    if "mnt" in joins and _is_own("mnt", joins["mnt"]):
        del joins["mnt"]  # it is inherited: to change the root of it would change everybody's
    if "mnt" not in new and any(_maps(spec, mount) for mount in spec.mounts):
        raise SpecError("mounts", "cannot have mapped ids without a new mount namespace")
    cgroup = cgroups.place_of(layout, spec.cgroups_path, id, spec.resources, counted)
    shortfalls: tuple[str, ...] = ()
    if rights is not None:
        from harness.minirt.container.rights import confine

        spec, cgroup, shortfalls = confine(spec, layout, cgroup, rights)
        process = spec.process
    at_birth = 0
    late = 0
    for kind in new:
        # The cgroup namespace's root is where its maker is, so it comes after the cgroup was joined; time concerns
        # only what is executed later.
        if kind in ("cgroup", "time"):
            late |= FLAGS[kind]
        else:
            at_birth |= FLAGS[kind]
    if not pivot and spec.rootfs_propagation & sys.MS_PRIVATE:
        raise SpecError("linux.rootfsPropagation", "private is not safe without pivot_root")
    if spec.mount_label:
        check_selinux("linux.mountLabel", spec.mount_label)
    in_user_namespace = "user" in new or "user" in joins
    profile = None
    if spec.seccomp is not None:
        from harness.minirt.container.seccomp import compile_profile

        profile = compile_profile(spec.seccomp, seccomp_cache)
    by_user = rights is not None and not rights.privileged
    detours = _detours(spec, new, joins)
    prepares = detours and not by_user and "mnt" in new
    foyer = _foyer_steps(spec, process, cgroup, joins, prepares, in_user_namespace, overlay) if detours else ()
    setup = [
        *(() if detours else _privileged_steps(process, cgroup)),
        *_namespace_steps(spec, new, () if detours else joins, late, new_keyring, id, by_user),
        *_root_steps(spec, process, cgroup, layout, new, joins, pivot, bundle, id, overlay, prepares),
    ]
    finish: list[Operation] = []
    if spec.intel_rdt is not None or scheduling_is_wanted(process):
        setup.append(operations.AskParent("scheduling"))
    if process is None:
        finish.append(program.LackProcess())
    else:
        setup += process_steps(process, in_user_namespace, spec.personality)
        if spec.memory_policy is not None:
            setup.append(memory_step(spec.memory_policy))
        privileges = program.Leave(process.args), privilege_step(process, profile)
        # Whether a filter's listener takes the descriptor is part of the creation.
        (setup if profile is not None and profile.listener is not None else finish).extend(privileges)
        if spec.hooks.get("startContainer"):
            state = state_text(spec.version, id, "created", bundle, spec.annotations)
            # Their programs are the image's: they get no rights that the container's process does not have.
            finish.append(program.RunHooks("startContainer", spec.hooks["startContainer"], state))
    return Plan(
        id=id,
        cgroup=cgroup,
        layout=layout,
        resources=spec.resources,
        clone_flags=at_birth,
        joins=joins,
        uid_maps=spec.uid_maps if "user" in new else (),
        gid_maps=spec.gid_maps if "user" in new else (),
        setup=tuple(setup),
        finish=tuple(finish),
        program=program.Program(() if process is None else process.args),
        hooks=spec.hooks,
        bundle=bundle,
        root=spec.root,
        annotations=spec.annotations,
        version=spec.version,
        terminal=process is not None and process.terminal,
        foyer=tuple(foyer),
        preserved_fds=preserved_fds,
        seccomp=profile,
        process=process,
        time_offsets=spec.time_offsets,
        net_devices=_net_devices(spec),
        rdt=_rdt_group(spec, id),
        warnings=(*spec.warnings, *capability_warnings(process, in_user_namespace)),
        shortfalls=shortfalls,
        limits_devices=rights is None or not rights.rootless,
    )


def _detours(spec: Spec, new: list[str], joins: dict[str, str]) -> bool:
    """Whether the way to the container leads past a process in between, which does what only the machine's root can do."""
    # Mapping ids takes a process whose own id is known to the machine's /proc, and which the machine trusts.
    if "user" in joins or any(_maps(spec, mount) for mount in spec.mounts):
        return True
    # The root of a user namespace may not enter each folder that leads to a bind mount's source, or to the root filesystem.
    # Without rights of our own there is no other way.
    return "user" in new and "mnt" in new and bool(sys.capget()[0] >> BITS["CAP_SYS_ADMIN"] & 1)


def _check_joins(spec: Spec) -> None:
    """Refuse what is given by its path and is no namespace of its kind ("Namespaces": "MUST generate an error")."""
    for index, entry in enumerate(spec.namespaces):
        if not entry.path:
            continue
        where = f"linux.namespaces[{index}].path"
        try:
            fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SpecError(where, f"{entry.path}: {os.strerror(error.errno or 0).lower()}") from None
        try:
            kind = sys.namespace_type(fd)
        except OSError:
            kind = 0
        finally:
            os.close(fd)
        if kind != FLAGS[entry.kind]:
            raise SpecError(where, f"{entry.path} is not a {entry.kind} namespace")


def _is_own(kind: str, path: str) -> bool:
    """Whether a path leads to the namespace that we are in."""
    found = os.stat(path)
    return (found.st_dev, found.st_ino) == identity("self", kind)


def _net_devices(spec: Spec) -> dict[str, str]:
    if not spec.net_devices:
        return {}
    from harness.minirt.container.netdevices import find_missing

    missing = find_missing(spec.net_devices)
    if missing:
        raise SpecError(f"linux.netDevices.{missing}", "there is no such network device")
    return spec.net_devices


def _rdt_group(spec: Spec, id: str) -> Group | None:
    if spec.intel_rdt is None:
        return None
    from harness.minirt.container.rdt import plan_group

    return plan_group(spec.intel_rdt, id)


def _privileged_steps(process: Process | None, cgroup: Cgroup) -> Iterator[Operation]:
    """What the machine's root does to itself, and its child inherits."""
    if cgroup.version == 1 and cgroup.folders:
        yield operations.JoinCgroup(cgroup.join_files())
    yield operations.ResetAffinity()
    if process is None:
        return
    if process.oom_score_adj is not None:
        yield operations.SetOomScore(process.oom_score_adj)
    for limit in process.rlimits:
        yield operations.SetRlimit(_RLIMIT_NAMES[limit.resource], limit.resource, limit.soft, limit.hard)


def _foyer_steps(
    spec: Spec,
    process: Process | None,
    cgroup: Cgroup,
    joins: dict[str, str],
    prepares: bool,
    in_user_namespace: bool,
    overlay: str,
) -> Iterator[Operation]:
    yield from _privileged_steps(process, cgroup)
    if prepares:
        from harness.minirt.container import preparing

        yield preparing.LeaveMounts()
        if overlay:
            yield preparing.PrepareOverlay(preparing.ROOT, spec.root, overlay, _maps_of_root(spec))
        else:
            yield preparing.PrepareRoot(spec.root)
        for index, mount in enumerate(spec.mounts):
            if mount.options.bind and _is_prepared(spec, mount):
                yield preparing.PrepareBind(
                    str(index), mount.source, mount.destination, mount.options, _maps(spec, mount), in_user_namespace
                )
            elif maps := _maps_of_image(mount):
                options = mount.options
                yield preparing.PrepareOverlay(
                    str(index), spec.root, options.data, maps, options.attributes, options.subfolder
                )
    if joins:
        yield operations.JoinNamespaces(tuple(joins))
    if "user" in joins:
        yield operations.BecomeRoot()


def _is_prepared(spec: Spec, mount: Mount) -> bool:
    """Whether a mount can be prepared: what is inside the root may be there only after the mounts that come before it."""
    if mount.options.remount:
        return False
    return bool(_maps(spec, mount)) or not f"{mount.source}/".startswith(f"{spec.root.rstrip('/')}/")


def _maps_of_root(spec: Spec) -> Maps | None:
    return Maps(spec.uid_maps, spec.gid_maps) if spec.uid_maps else None


def _maps_of_image(mount: Mount) -> Maps | None:
    """How the ids of an overlay without anything writable are mapped, if they are."""
    if mount.type != "overlay" or not mount.uid_maps or not mount.options.data.startswith("lowerdir="):
        return None
    return Maps(mount.uid_maps, mount.gid_maps)


def _maps(spec: Spec, mount: Mount) -> Maps | None:
    """How the ids of a mount are mapped: as it says itself, else as the container's are, where it says ``idmap``."""
    if mount.uid_maps:
        return Maps(mount.uid_maps, mount.gid_maps)
    if not mount.options.idmap:
        return None
    # A user namespace that exists has mappings, whether they are told or not.
    joined = any(entry.kind == "user" and entry.path for entry in spec.namespaces)
    return OF_THE_CONTAINER if joined else Maps(spec.uid_maps, spec.gid_maps)


def _namespace_steps(
    spec: Spec, new: list[str], joins: Iterable[str], late: int, new_keyring: bool, id: str, by_user: bool
) -> Iterator[Operation]:
    if kinds := tuple(kind for kind in joins if kind != "pid"):
        yield operations.JoinNamespaces(kinds)
    if "user" in new:
        yield operations.AwaitIdMaps(by_user)
        yield operations.BecomeRoot()
    if late:
        yield operations.Unshare(late)
    if spec.time_offsets and "time" in new:
        lines = [f"{clock} {secs} {nanosecs}\n" for clock, (secs, nanosecs) in spec.time_offsets.items()]
        # The file is the machine's root's, who is not in a user namespace.
        yield operations.TimeOffsets("".join(lines)) if by_user else operations.AskParent("offsets")
    if new_keyring:
        yield operations.NewKeyring(f"_ses.{id}")
    if "net" in new:
        yield operations.RaiseLoopback()
    if spec.net_devices:
        yield operations.AskParent("devices")
    if spec.hostname or spec.domainname:
        yield operations.SetNames(spec.hostname, spec.domainname)
    for name, value in spec.sysctl.items():
        yield operations.SetSysctl(name, value)


def _root_steps(
    spec: Spec,
    process: Process | None,
    cgroup: Cgroup,
    layout: Layout,
    new: list[str],
    joins: dict[str, str],
    pivot: bool,
    bundle: str,
    id: str,
    overlay: str,
    prepared: bool,
) -> Iterator[Operation]:
    in_user_namespace = "user" in new or "user" in joins
    parent_hooks = spec.hooks.get("prestart") or spec.hooks.get("createRuntime")
    create_hooks = spec.hooks.get("createContainer", ())
    creating = state_text(spec.version, id, "creating", bundle, spec.annotations) if create_hooks else ""
    inherited = "mnt" not in new and "mnt" not in joins
    propagation = spec.rootfs_propagation
    if inherited:
        from harness.minirt.container import inherited as roots

        yield roots.OpenRoot(spec.root) if in_user_namespace else roots.MountRoot(spec.root)
    else:
        # Of what is not to be shared, the rest of the machine's mounts has to be cut off too: they are bound, and left. An
        # unbindable one could not be.
        shared = bool(propagation & sys.MS_SHARED)
        cut = sys.MS_SLAVE if not propagation or propagation & sys.MS_SLAVE else sys.MS_PRIVATE
        yield mounting.SetPropagation(propagation if shared else cut | sys.MS_REC)
        if prepared:
            from harness.minirt.container.preparing import EnterTree

            yield EnterTree()
        elif overlay:
            yield mounting.EnterOverlay(spec.root, overlay, shared)
        else:
            yield mounting.EnterRoot(spec.root, shared)
    dev_is_bound = False
    after: list[Operation] = []
    for index, mount in enumerate(spec.mounts):
        if mount.options.remount:
            yield _remount_step(mount)
        elif mount.options.bind or (prepared and _maps_of_image(mount)):
            key = str(index) if prepared and _is_prepared(spec, mount) else ""
            yield mounting.Bind(mount.source, mount.destination, mount.options, key)
        else:
            yield _mount_step(mount, cgroup, layout, new, spec.mount_label)
        destination = "/" + mount.destination.strip("/")
        if destination == "/dev" and mount.options.bind:
            dev_is_bound = True
        if mount.options.read_only and not mount.options.bind and mounting.fills_later(mount.type, destination):
            after.append(mounting.Remount(mount.destination, Attributes(sys.MOUNT_ATTR_RDONLY)))
    if not (inherited and in_user_namespace):
        yield from _device_steps(spec, in_user_namespace, dev_is_bound)
    if process is not None:
        yield mounting.MakeFolder(process.cwd)
    if process is not None and process.terminal:
        from harness.minirt.container.terminal import OpenTerminal

        yield OpenTerminal(process.user.uid, process.console_size, not (inherited and in_user_namespace))
    if parent_hooks:
        yield operations.AskParent("hooks")
    if create_hooks:
        yield program.RunHooks("createContainer", create_hooks, creating)
    yield from after
    if spec.readonly_paths:
        yield hiding.ReadonlyPaths(spec.readonly_paths)
    if spec.masked_paths:
        yield hiding.MaskPaths(spec.masked_paths, spec.mount_label)
    if spec.root_readonly:
        yield mounting.ReadonlyRoot()
    yield roots.Chroot() if inherited else mounting.ChangeRoot(pivot, propagation)


def _remount_step(mount: Mount) -> Operation:
    """``remount`` changes what an earlier entry, or the root file system, has mounted there; with ``bind`` that mount alone."""
    options = mount.options
    if options.bind:
        return mounting.Remount(mount.destination, options.attributes)
    return mounting.RemountFilesystem(mount.source, mount.destination, options)


def _mount_step(mount: Mount, cgroup: Cgroup, layout: Layout, new: list[str], label: str) -> Operation:
    if mount.options.idmap or mount.uid_maps:
        raise Unsupported(f"mount {mount.destination}: only bind mounts can have mapped ids")
    if mount.type in ("cgroup", "cgroup2"):
        return _cgroup_mount(mount, cgroup, layout, "cgroup" in new)
    return mounting.MountFilesystem(mount.type, mount.source, mount.destination, mount.options, label)


def _cgroup_mount(mount: Mount, cgroup: Cgroup, layout: Layout, own_namespace: bool) -> Operation:
    if layout.version == 2:
        assert layout.unified is not None
        folder = cgroup.folders.get("") or f"{layout.unified.folder}{layout.unified.own}"
        return mounting.MountCgroups(mount.destination, mount.options, (), (), folder, own_namespace)
    hierarchies: dict[str, tuple[str, str, str]] = {}
    links = []
    # Who has no cgroup of their own is in the one that we are in.
    folders = cgroup.folders or {name: f"{item.folder}{item.own}" for name, item in layout.v1.items()}
    for controller, folder in folders.items():
        if not controller:  # the v2 tree beside them, which only systemd looks at
            continue
        joined = layout.v1[controller].name
        hierarchies[joined] = (joined.removeprefix("name="), joined, folder)
        if joined != controller:
            links.append((controller, joined))
    return mounting.MountCgroups(
        mount.destination, mount.options, tuple(hierarchies.values()), tuple(links), "", own_namespace
    )


def _device_steps(spec: Spec, bind: bool, dev_is_bound: bool) -> Iterator[Operation]:
    devices = {device.path: device for device in (*_DEFAULT_DEVICES, *spec.devices)}
    for device in devices.values():
        # A /dev of the machine's has what it has; and its ptmx is always that of the container's own terminals.
        if device.path == "/dev/ptmx" or (dev_is_bound and device.path.startswith("/dev/")):
            continue
        yield nodes.MakeDevice(device.path, device.mode, device.major, device.minor, device.uid, device.gid, bind)
    if dev_is_bound:
        return
    links: tuple[tuple[str, str], ...] = _DEFAULT_LINKS
    if not any(mount.destination.rstrip("/") == "/dev/ptmx" for mount in spec.mounts):
        links += (("/dev/ptmx", "pts/ptmx"),)
    yield nodes.MakeLinks(links)


def state_text(version: str, id: str, status: str, bundle: str, annotations: dict[str, str]) -> str:
    """The state document for a hook inside the container, which puts its pid in."""
    content = {
        "ociVersion": version,
        "id": id,
        "status": status,
        "pid": 0,
        "bundle": bundle,
        "annotations": annotations,
    }
    return document.render(content).replace('"pid":0', '"pid":@pid@', 1)
