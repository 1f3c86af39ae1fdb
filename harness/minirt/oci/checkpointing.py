"""checkpoint and restore: a container's processes into files, and back into life, by criu (https://criu.org).

Beside criu's images stand ``descriptors.json`` (what the first process had as its standard streams, as runc writes it) and
``outside.json``: files of the machine that the container had open.
"""

from __future__ import annotations

import os
import sys

from harness.linux import syscalls
from harness.linux.namespaces import FLAGS
from harness.minirt.container import cgroup as cgroups
from harness.minirt.container import document, rootfs, state
from harness.minirt.container.checkpoint import OWN_ROOT_NAMES, outer_files
from harness.minirt.container.files import write_file
from harness.minirt.container.hooks import run_hooks
from harness.minirt.container.launch import Launched
from harness.minirt.container.record import changed
from harness.minirt.container.spec import parse_spec
from harness.minirt.errors import MinirtError, Unsupported, UsageError, WrongState, step_error
from harness.minirt.oci import criu
from harness.minirt.oci.creation import pid_file_of, read_plan, record_of, write_pid_file
from harness.minirt.oci.lifecycle import destroy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

    from harness.minirt.container.plan import Plan
    from harness.minirt.container.spec import Mount, Spec
    from harness.minirt.container.state import Container
    from harness.minirt.oci.arguments import Words
    from harness.minirt.oci.command import Context
    from harness.minirt.oci.criu import Value
    from harness.minirt.oci.foreground import Relay

_MODES = {"ignore": 0, "soft": 3, "full": 4, "strict": 5, "": 6}
_SWITCHES = {
    "leave-running": 3,
    "ext-unix-sk": 4,
    "tcp-established": 5,
    "shell-job": 7,
    "file-locks": 8,
    "auto-dedup": 16,
    "link-remap": 18,
    "tcp-skip-in-flight": 46,
    "lazy-pages": 48,
}
"""Options that are criu's as well, with the numbers of their fields in rpc.proto (criu_opts)"""
_IMAGES_FD, _PID, _EVASIVE_DEVICES, _LOG_LEVEL, _LOG_FILE, _PAGE_SERVER, _NOTIFY, _ROOT = 1, 2, 6, 9, 10, 11, 12, 13
_PARENT, _TRACK_MEMORY, _WORK_FD, _MANAGE_CGROUPS, _CGROUP_ROOT, _AS_SIBLING, _INHERIT = 14, 15, 17, 24, 25, 26, 27
_CGROUPS_MODE, _EXTERNAL, _EMPTY_NAMESPACES, _JOIN, _FREEZE_CGROUP, _ORPHAN_TERMINAL = 34, 37, 38, 39, 44, 50
_CONFIG_FILE, _LSM_PROFILE, _LSM_CONTEXT = 51, 53, 63
_STREAMS, _OUTSIDE = "descriptors.json", "outside.json"
_CONFIG = "/etc/criu/runc.conf"
"""where criu's settings for containers are, unless the annotation ``org.criu.config`` names another file, or none"""


def checkpoint(context: Context, words: Words) -> int:
    """Write the images; the container ends with it, and is deleted, unless it is left running."""
    id = words.arguments[0]
    with state.Lock(context.root, id):
        container = state.load(context.root, id)
        status = state.status_of(context.root, container)
        if status in (state.CREATED, state.STOPPED):
            raise WrongState(f"Container cannot be checkpointed in {status} state")
        spec = _spec_of(container)
        _mode(words)
        _check_empty(words)
        images, work = _folders(words)
        folders = [os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for path in (images, work)]
        options = common_options(words, folders, container.root, "dump.log", container.annotations)
        freezer = container.cgroup.folders.get("freezer") or container.cgroup.folders.get("")
        options += [(_PID, container.pid), *([(_FREEZE_CGROUP, freezer)] if freezer else [])]
        parent = _parent(words, images)
        options += [(_PARENT, parent)] if parent else []
        options += [(_TRACK_MEMORY, True)] if parent or words.has("pre-dump") else []
        options += page_server(words)
        status_fd = _status_fd(words)
        if not words.has("pre-dump"):
            names = (*_outer_namespaces(container, spec), *_outer_mounts(container, spec))
            options += [(_EXTERNAL, name) for name in (*names, *_note_streams(container, images))]
        try:
            criu.ask(
                criu.PRE_DUMP if words.has("pre-dump") else criu.DUMP,
                lambda _: options,
                prepare=lambda: None,
                notified=lambda name, _, fds: _tell(name, status_fd, fds),
                descriptors=[],
                log=f"{work}/dump.log",
            )
        finally:
            for fd in folders:
                os.close(fd)
        if not words.has("leave-running") and not words.has("pre-dump"):
            destroy(context, container)
    return 0


def _spec_of(container: Container) -> Spec:
    path = f"{container.bundle}/config.json"
    try:
        return parse_spec(document.read_file(path), container.bundle)
    except OSError as error:
        raise UsageError(f"{path}: {os.strerror(error.errno or 0).lower()}") from None


def _folders(words: Words) -> tuple[str, str]:
    images = os.path.abspath(words.value("image-path") or "checkpoint")
    work = os.path.abspath(words.value("work-path") or images)
    for folder in (images, work):
        os.makedirs(folder, 0o700, exist_ok=True)
    return images, work


def _parent(words: Words, images: str) -> str:
    parent = words.value("parent-path")
    if parent.startswith("/"):
        raise UsageError("--parent-path must be relative")
    if parent and not os.path.isdir(f"{images}/{parent}"):
        raise UsageError(f"invalid --parent-path: {images}/{parent}: is not a folder")
    return parent


def _mode(words: Words) -> str:
    mode = words.value("manage-cgroups-mode")
    if mode not in _MODES:
        raise UsageError("invalid manage-cgroups-mode value")
    return mode


def common_options(
    words: Words, folders: list[int], root: str, log: str, annotations: dict[str, str]
) -> list[tuple[int, Value]]:
    """Options of both requests. `folders`: descriptors of those of images and of work."""
    options: list[tuple[int, Value]] = [
        (_IMAGES_FD, folders[0]),
        (_WORK_FD, folders[1]),
        (_LOG_LEVEL, 4),
        (_LOG_FILE, log),
        (_NOTIFY, True),
        (_ROOT, root),
        (_MANAGE_CGROUPS, True),
        (_CGROUPS_MODE, _MODES[_mode(words)]),
        # What is in a network namespace is for whoever put it there in the first place.
        (_EMPTY_NAMESPACES, FLAGS["net"]),
        (_ORPHAN_TERMINAL, True),
    ]
    options += [(number, True) for name, number in _SWITCHES.items() if words.has(name)]
    if path := _config_of(annotations):
        options.append((_CONFIG_FILE, path))
    return options


def _check_empty(words: Words) -> None:
    """Nothing to do for what can be asked for: a network namespace is always made anew."""
    for kind in words.lists.get("empty-ns", ()):
        if kind != "network":
            raise UsageError(f'namespace "{kind}" is not supported')


def _config_of(annotations: dict[str, str]) -> str:
    path = annotations.get("org.criu.config", _CONFIG)
    return path if path and os.path.exists(path) else ""


def page_server(words: Words) -> list[tuple[int, Value]]:
    place = words.value("page-server")
    if not place:
        return []
    address, colon, port = place.rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    if not (address and colon and port):
        raise UsageError("Use --page-server ADDRESS:PORT to specify page server")
    if not (port.isascii() and port.isdigit()):
        raise UsageError("Invalid port number")
    return [(_PAGE_SERVER, [(1, address), (2, int(port))])]


def _status_fd(words: Words) -> int:
    text = words.value("status-fd") or "-1"
    return -1 if text == "-1" or not words.has("lazy-pages") else _writable(text)


def _tell(name: str, status_fd: int, fds: list[int]) -> None:
    """Hand on that the server of memory is ready (``--status-fd``)."""
    for fd in fds:
        os.close(fd)
    if name == "status-ready" and status_fd >= 0:
        os.write(status_fd, b"\0")
        os.close(status_fd)


def _writable(text: str) -> int:
    import fcntl

    try:
        flags = fcntl.fcntl(int(text), fcntl.F_GETFL)
    except (ValueError, OSError) as error:
        reason = os.strerror(error.errno or 0).lower() if isinstance(error, OSError) else "is not a number"
        raise UsageError(f"invalid --status-fd argument {text}: {reason}") from None
    if flags & os.O_ACCMODE == os.O_RDONLY:
        raise UsageError(f"invalid --status-fd argument {text}: not writable")
    return int(text)


def _outer_namespaces(container: Container, spec: Spec) -> list[str]:
    """Those that the container joined; criu takes two kinds of them from outside."""
    found = []
    for entry in spec.namespaces:
        if entry.path and entry.kind in OWN_ROOT_NAMES:
            inode = os.stat(f"/proc/{container.pid}/ns/{entry.kind}").st_ino
            found.append(f"{entry.kind}[{inode}]:{OWN_ROOT_NAMES[entry.kind]}")
    return found


def _outer_mounts(container: Container, spec: Spec) -> list[str]:
    """What the container sees of the machine's files: where it is mounted, and the name by which the restore gives it."""
    root = os.open(f"/proc/{container.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = []
        for mount in spec.mounts:
            if mount.options.bind:
                place = _resolved(root, mount.destination, "")
                found.append(f"mnt[{place}]:{place}")
        found += [f"mnt[{place}]:{place}" for place, _ in _cgroup_binds(container.cgroup, spec)]
        for path in spec.masked_paths:
            if rootfs.exists(root, path) and not os.path.isdir(f"/proc/{container.pid}/root{path}"):
                found.append(f"mnt[{_resolved(root, path, '')}]:/dev/null")
        if spec.uid_maps:
            found += [f"mnt[{device.path}]:{device.path}" for device in spec.devices]
    finally:
        os.close(root)
    return found


def _resolved(root: int, path: str, prefix: str) -> str:
    """A path below the root, without the links in it. `prefix`: where the root is."""
    try:
        fd = rootfs.find(root, path)
    except OSError:
        return path
    try:
        return os.readlink(rootfs.magic(fd)).removeprefix(prefix) or "/"
    finally:
        os.close(fd)


def _cgroup_binds(cgroup: cgroups.Cgroup, spec: Spec) -> list[tuple[str, str]]:
    """Where cgroups are shown without a cgroup namespace: then they are folders of the machine's mounts."""
    if spec.namespace("cgroup") is not None or cgroup.version == 2:
        return []
    layout = cgroups.read_layout()
    return [
        (f"{mount.destination.rstrip('/')}/{layout.v1[name].name}", folder)
        for mount in spec.mounts
        if mount.type in ("cgroup", "cgroup2")
        for name, folder in cgroup.folders.items()
        if name in layout.v1
    ]


def _note_streams(container: Container, images: str) -> list[str]:
    """Write down what is inherited from outside; the names of files among it, which criu has to be told."""
    streams = []
    for number in range(3):
        try:
            streams.append(os.readlink(f"/proc/{container.pid}/fd/{number}"))
        except FileNotFoundError:
            streams.append("")
    names = outer_files(container.cgroup.pids())
    known = {name: number for number in (2, 1, 0) for name in outer_files_of(container.pid, number)}
    outside = {name: known.get(name, -1) for name in names}
    for file, content in ((_STREAMS, streams), (_OUTSIDE, outside)):
        fd = os.open(f"{images}/{file}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.write(fd, document.render(content).encode())
        os.close(fd)
    return names


def outer_files_of(pid: int, fd: int) -> list[str]:
    """The name of one open file as criu knows it, where it is a file."""
    try:
        with open(f"/proc/{pid}/fdinfo/{fd}") as file:
            facts = dict(line.split(":\t", 1) for line in file if ":\t" in line)
        return [f"file[{int(facts['mnt_id']):x}:{os.stat(f'/proc/{pid}/fd/{fd}').st_ino:x}]"]
    except (OSError, KeyError):
        return []


def restore(context: Context, words: Words) -> int:
    """Let a container go on from its images; unless detached wait for its end, delete it, and end with its exit status."""
    id = state.check_id(words.arguments[0])
    plan, content = read_plan(context, words, id)
    spec = parse_spec(content, plan.bundle)
    images = os.path.abspath(words.value("image-path") or "checkpoint")
    if not os.path.isdir(images):
        raise UsageError(f"{images}: is not a folder")
    work = os.path.abspath(words.value("work-path") or images)
    os.makedirs(work, 0o700, exist_ok=True)
    _mode(words)
    _check_empty(words)
    console, relay = _terminal(words, plan)
    if not words.has("detach") and not words.has("no-subreaper"):
        from harness.minirt.oci.foreground import adopt_orphans

        adopt_orphans()
    container = record_of(words, id, plan, content)
    folder = state.reserve(context.root, id)
    pid, made = 0, False
    try:
        # Written before there is anything, so that whatever a kill leaves can be found and deleted.
        state.save(folder, container)
        cgroups.create(plan.layout, plan.cgroup)
        made = True
        plan.cgroup.apply(plan.resources, plan.limits_devices)
        pid = _Restoration(words, plan, spec, images, work, folder, console).perform()
        plan.cgroup.settle()
        container = changed(container, pid=pid, pid_started=state.start_ticks(pid))
        state.save(folder, container)
        launched = Launched(pid, os.pidfd_open(pid))
        write_pid_file(pid_file_of(words), pid)
    except BaseException:
        if made:  # else it is somebody else's
            plan.cgroup.kill_all()
            if pid:
                os.waitpid(pid, 0)
            plan.cgroup.remove()
        state.forget(context.root, id)
        raise
    finally:
        if console is not None:
            console.close()
    if words.has("detach"):
        return 0
    from harness.minirt.oci import foreground

    try:
        return foreground.see_through(launched, relay)
    finally:
        destroy(context, container)


def _terminal(words: Words, plan: Plan) -> tuple[socket | None, Relay | None]:
    path = words.value("console-socket")
    if not plan.terminal:
        if path:
            raise UsageError("cannot use console socket if minirt will not detach or allocate tty")
        return None, None
    if path:
        from harness.minirt.container.terminal import connect_console

        try:
            return connect_console(path), None
        except OSError as error:
            raise step_error("connect to the console socket", error) from None
    if words.has("detach"):
        raise UsageError("cannot allocate tty if minirt will detach without setting console socket")
    from harness.minirt.oci.foreground import Relay

    relay = Relay()
    return relay.end, relay


class _Restoration:
    """One request to criu, and what it has to find."""

    def __init__(
        self, words: Words, plan: Plan, spec: Spec, images: str, work: str, folder: str, console: socket | None
    ) -> None:
        self._words, self._plan, self._spec = words, plan, spec
        self._images, self._work, self._folder, self._console = images, work, folder, console
        self._root = f"{folder}/criu-root"
        self._home = self._away = -1
        self._folders: list[int] = []
        self._namespaces: list[int] = []

    def perform(self) -> int:
        """The pid of the restored first process.

        What has to be mounted for criu is mounted in a mount namespace of ours, with which it ends. criu itself has to be born
        in there: its folders would be on mounts of another namespace else.
        """
        os.mkdir(self._root, 0o755)
        here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._prepare_mounts()
            self._away = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            self._open_descriptors()
            return criu.ask(
                criu.RESTORE,
                self._options,
                prepare=self._join_cgroups,
                notified=self._notified,
                descriptors=self._namespaces,
                log=f"{self._work}/restore.log",
            )
        finally:
            syscalls.setns(self._home)
            os.fchdir(here)
            for fd in (here, self._home, self._away, *self._folders, *self._namespaces):
                if fd >= 0:
                    os.close(fd)
            os.rmdir(self._root)

    def _open_descriptors(self) -> None:
        """The folders of images and of work, and the namespaces that the container joins."""
        flags = os.O_RDONLY | os.O_CLOEXEC
        for path in (self._images, self._work):
            self._folders.append(os.open(path, flags | os.O_DIRECTORY))
        for kind in OWN_ROOT_NAMES:
            entry = self._spec.namespace(kind)
            if entry is not None and entry.path:
                try:
                    self._namespaces.append(os.open(entry.path, flags))
                except OSError as error:
                    raise step_error(f"open the {kind} namespace", error) from None

    def _join_cgroups(self) -> None:
        for path in self._plan.cgroup.join_files():
            write_file(path, "0")

    def _prepare_mounts(self) -> None:
        syscalls.unshare(FLAGS["mnt"])
        syscalls.mount(None, "/", None, syscalls.MS_SLAVE | syscalls.MS_REC)
        # criu wants a root that is a mount, with a parent that nothing is mounted over.
        syscalls.mount(self._spec.root, self._root, None, syscalls.MS_BIND | syscalls.MS_REC)
        root = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for mount in self._spec.mounts:
            if mount.type in ("cgroup", "cgroup2") or self._on_tmpfs(mount):
                continue
            if not mount.options.bind:
                os.close(rootfs.make_folder(root, mount.destination))
                continue
            target = rootfs.make_target(root, mount.destination, os.stat(mount.source).st_mode)
            # Mount points of others can be inside of it.
            syscalls.mount(mount.source, rootfs.magic(target), None, syscalls.MS_BIND | syscalls.MS_REC)
            os.close(target)
        os.close(root)

    def _on_tmpfs(self, mount: Mount) -> bool:
        return any(
            other.type == "tmpfs" and mount.destination.startswith(other.destination.rstrip("/") + "/")
            for other in self._spec.mounts
        )

    def _options(self, worker: int) -> list[tuple[int, Value]]:
        """criu_opts; `worker` is in the container's cgroups already."""
        words, spec = self._words, self._spec
        options = common_options(words, self._folders, self._root, "restore.log", spec.annotations)
        options += [(_EVASIVE_DEVICES, True), (_AS_SIBLING, True)]
        for number, name in ((_LSM_PROFILE, "lsm-profile"), (_LSM_CONTEXT, "lsm-mount-context")):
            if words.value(name):
                options.append((number, words.value(name)))
        options += [(_INHERIT, [(1, key), (2, fd)]) for key, fd in self._inherited(criu.SOCKET_FD + 1)]
        options += [(_EXTERNAL, f"mnt[{name}]:{source}") for name, source in self._mounts()]
        for entry in spec.namespaces:
            if entry.path and entry.kind not in OWN_ROOT_NAMES:
                if entry.kind == "cgroup":
                    raise Unsupported("criu cannot restore a container into an existing cgroup namespace")
                options.append((_JOIN, [(1, entry.kind), (2, entry.path)]))
        with open(f"/proc/{worker}/cgroup") as file:
            for line in file:
                _, names, path = line.rstrip("\n").split(":", 2)
                options += [(_CGROUP_ROOT, [(1, name), (2, path)]) for name in names.split(",")]
        return options

    def _inherited(self, first: int) -> list[tuple[str, int]]:
        """What the restored processes get of ours: standard streams for those that they had, and namespaces."""
        found = []
        for number, kind in enumerate(kind for kind in OWN_ROOT_NAMES if self._joined(kind)):
            found.append((OWN_ROOT_NAMES[kind], first + number))
        try:
            streams = document.read_file(f"{self._images}/{_STREAMS}")
        except OSError as error:
            raise step_error("read what the checkpoint says of its standard streams", error) from None
        found += [(name, number) for number, name in enumerate(streams[:3]) if "pipe:" in name]
        try:
            outside = document.read_file(f"{self._images}/{_OUTSIDE}")
        except FileNotFoundError:  # it is a checkpoint of runc
            return found
        return [*found, *((name, number) for name, number in outside.items() if 0 <= number < 3)]

    def _joined(self, kind: str) -> bool:
        entry = self._spec.namespace(kind)
        return entry is not None and bool(entry.path)

    def _mounts(self) -> list[tuple[str, str]]:
        root = os.open(self._spec.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        prefix = os.path.realpath(self._spec.root)
        try:
            found = [
                (_resolved(root, mount.destination, prefix), mount.source)
                for mount in self._spec.mounts
                if mount.options.bind
            ]
        finally:
            os.close(root)
        found += _cgroup_binds(self._plan.cgroup, self._spec)
        if self._spec.masked_paths:
            found.append(("/dev/null", "/dev/null"))
        if self._spec.uid_maps:
            found += [(device.path, device.path) for device in self._spec.devices]
        return found

    def _notified(self, name: str, pid: int, fds: list[int]) -> None:
        try:
            if name == "setup-namespaces":
                self._run_hooks(pid)
            elif name == "orphan-pts-master" and self._console is not None and fds:
                _send_terminal(self._console, fds[0])
        finally:
            for fd in fds:
                os.close(fd)

    def _run_hooks(self, pid: int) -> None:
        plan = self._plan
        content = {"ociVersion": plan.version, "id": plan.id, "status": "creating", "pid": pid, "bundle": plan.bundle}
        text = document.render({**content, "annotations": plan.annotations})
        syscalls.setns(self._home)
        try:
            for name in ("prestart", "createRuntime"):
                run_hooks(name, plan.hooks.get(name, ()), text)
        finally:
            syscalls.setns(self._away)


def _send_terminal(console: socket, master: int) -> None:
    from _socket import SCM_RIGHTS, SOL_SOCKET

    try:
        console.sendmsg([b"pts"], [(SOL_SOCKET, SCM_RIGHTS, master.to_bytes(4, sys.byteorder))])
    except OSError as error:
        raise MinirtError(f"cannot send the terminal: {os.strerror(error.errno or 0).lower()}") from None
