"""What is remembered of a container: ``<root>/<id>/state.json``, written whole or not at all.

The status is never stored: it follows from the process (is it the one that was started, does it live), the gate and
the freezer, so a kill at any moment leaves nothing that is wrong. A folder without a process is a stopped container, which
`delete` can clear away with all it owns.
"""

from __future__ import annotations

import fcntl

from harness.linux import lean as os
from harness.minirt.container import document
from harness.minirt.container.cgroup import Cgroup, cgroup_of
from harness.minirt.container.files import read_file
from harness.minirt.container.record import Record
from harness.minirt.errors import ContainerExists, ContainerMissing, InvalidArgument, StateCorrupt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from harness.minirt.container.hooks import Hook

CREATING, CREATED, RUNNING, PAUSED, STOPPED = "creating", "created", "running", "paused", "stopped"
GATE = "gate"
"""the name in a container's folder of the socket at which it waits (see `gate`)"""
_FILE = "state.json"
_ID_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")


class Container(Record):
    """One container as it is remembered."""

    id: str
    version: str
    """ociVersion of its config"""
    bundle: str
    root: str
    """its root filesystem"""
    cgroup: Cgroup
    created: str
    """RFC 3339, UTC"""
    pid: int = 0
    pid_started: int = 0
    """start time of `pid` in clock ticks since boot, which tells it from a later process with the same number"""
    annotations: dict[str, str] = {}  # noqa: RUF012
    hooks: dict[str, tuple[Hook, ...]] = {}  # noqa: RUF012
    seccomp: dict[str, Any] | None = None
    """linux.seccomp, which `exec` applies too"""
    no_new_keyring: bool = False
    beside: dict[str, Any] = {}  # noqa: RUF012
    """what of linux `exec` and `delete` need too: personality and memoryPolicy as they stand, resctrl groups"""
    resources: dict[str, Any] | None = None
    """linux.resources with what `update` has changed of them"""
    command: str = ""
    """the program for which a trampoline waits at the gate; empty: none does"""
    own_pids: bool = True
    """whether it has a pid namespace of its own, with which all its processes end"""


def check_id(id: str) -> str:
    """The id itself; raises `InvalidArgument` for one that could not be a file name."""
    if not id or len(id) > 255 or not set(id) <= _ID_LETTERS or id in (".", ".."):
        raise InvalidArgument(f"invalid container ID format: {id!r}")
    return id


def folder_of(root: str, id: str) -> str:
    """A container's state folder."""
    return f"{root}/{check_id(id)}"


def reserve(root: str, id: str) -> str:
    """Make the state folder; raises `ContainerExists`."""
    folder = folder_of(root, id)
    try:
        os.makedirs(root, 0o700, exist_ok=True)
        os.mkdir(folder, 0o711)
    except FileExistsError:
        raise ContainerExists(id) from None
    return folder


def save(folder: str, container: Container) -> None:
    """Write the state; whoever reads finds the old one or the new one."""
    content = {
        "ociVersion": container.version,
        "id": container.id,
        "pid": container.pid,
        "pidStarted": container.pid_started,
        "bundle": container.bundle,
        "rootfs": container.root,
        "created": container.created,
        "cgroup": container.cgroup.as_document(),
        "annotations": container.annotations,
        "hooks": {name: [_hook_document(hook) for hook in hooks] for name, hooks in container.hooks.items()},
        "seccomp": container.seccomp,
        "noNewKeyring": container.no_new_keyring,
        "beside": container.beside,
        "resources": container.resources,
        "command": container.command,
        "ownPids": container.own_pids,
    }
    fresh = f"{folder}/.{_FILE}.{os.getpid()}"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, document.render(content).encode())
    finally:
        os.close(fd)
    os.rename(fresh, f"{folder}/{_FILE}")


def _hook_document(hook: Hook) -> dict[str, Any]:
    return {"path": hook.path, "args": hook.args, "env": hook.env, "timeout": hook.timeout_s}


def _hook_of(item: dict[str, Any]) -> Hook:
    from harness.minirt.container.hooks import Hook

    env = item["env"]
    return Hook(item["path"], tuple(item["args"]), None if env is None else tuple(env), item["timeout"])


def load(root: str, id: str) -> Container:
    """Raises `ContainerMissing` and `StateCorrupt`."""
    folder = folder_of(root, id)
    path = f"{folder}/{_FILE}"
    if os.path.islink(folder):
        raise StateCorrupt(f"{folder} is a symbolic link, and no container's folder")
    try:
        content = document.read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ContainerMissing(id) from None
    except OSError as error:
        raise StateCorrupt(f"{path}: {os.strerror(error.errno or 0).lower()}") from None
    except ValueError as error:
        raise StateCorrupt(f"{path}: {error}") from None
    try:
        return Container(
            id=content["id"],
            version=content["ociVersion"],
            bundle=content["bundle"],
            root=content["rootfs"],
            cgroup=cgroup_of(content["cgroup"]),
            created=content["created"],
            pid=content["pid"],
            pid_started=content["pidStarted"],
            annotations=content["annotations"],
            hooks={name: tuple([_hook_of(item) for item in items]) for name, items in content["hooks"].items()},
            seccomp=content["seccomp"],
            no_new_keyring=content["noNewKeyring"],
            beside=content.get("beside", {}),
            resources=content.get("resources"),
            command=content.get("command", ""),
            own_pids=content.get("ownPids", True),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise StateCorrupt(f"{path}: {type(error).__name__}: {error}") from None


def list_ids(root: str) -> list[str]:
    """Every id that has a state, sorted."""
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    return [
        name
        for name in names
        if set(name) <= _ID_LETTERS
        and os.path.exists(f"{root}/{name}/{_FILE}")
        and not os.path.islink(f"{root}/{name}")
    ]


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 for one that has ended (a zombie too)."""
    try:
        text = read_file(f"/proc/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # The name in parentheses may hold anything, parentheses too.
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] in "ZXx" else int(fields[19])


def is_alive(container: Container) -> bool:
    """Whether the container's first process runs."""
    return bool(container.pid) and start_ticks(container.pid) == container.pid_started


def pids_of(container: Container) -> list[int]:
    """Its processes: those of its cgroup, or, where a normal user could make none, of its pid namespace."""
    if container.cgroup.folders:
        return container.cgroup.pids()
    if not is_alive(container):
        return []
    own = _pid_namespace(str(container.pid))
    if own in (0, _pid_namespace("self")):
        return [container.pid]
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit() and _pid_namespace(name) == own)


def _pid_namespace(name: str) -> int:
    try:
        return os.stat(f"/proc/{name}/ns/pid").st_ino
    except OSError:
        return 0


def status_of(root: str, container: Container) -> str:
    """created, running, paused or stopped, as things are now; what was paused before it was started is paused."""
    if not is_alive(container):
        return STOPPED
    if container.cgroup.is_frozen():
        return PAUSED
    return CREATED if _waits(f"{folder_of(root, container.id)}/{GATE}", container) else RUNNING


def _waits(gate: str, container: Container) -> bool:
    """Whether the process is still at its gate. One that waits in a trampoline leaves it to its starter to remove the gate."""
    if not os.path.lexists(gate):
        return False
    program = f"/proc/{container.pid}/exe"
    try:
        if not container.command:
            return True
        # It says that it is ready just before it becomes a trampoline: asked for in the order in which it goes.
        its, ours = os.stat(program), os.stat("/proc/self/exe")
        if (its.st_dev, its.st_ino) == (ours.st_dev, ours.st_ino):
            return True
        return os.readlink(program).startswith("/memfd:minirt")
    except OSError:
        return True


def state_document(container: Container, status: str) -> dict[str, Any]:
    """The state as the specification has it ("State")."""
    content: dict[str, Any] = {
        "ociVersion": container.version,
        "id": container.id,
        "pid": 0 if status == STOPPED else container.pid,
        "status": status,
        "bundle": container.bundle,
        "rootfs": container.root,
        "created": container.created,
    }
    if container.annotations:
        content["annotations"] = container.annotations
    content["owner"] = ""
    return content


def owner_of(root: str, id: str) -> str:
    """The name of whoever owns a container's state folder, ``#`` and the number where it has no name."""
    import pwd

    uid = os.stat(folder_of(root, id)).st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def forget(root: str, id: str) -> None:
    """Remove the state folder."""
    folder = folder_of(root, id)
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        # The state itself goes last but one: as long as there is something, it can be found and deleted again.
        for name in sorted(os.listdir(fd), key=lambda name: name == _FILE):
            try:
                os.unlink(name, dir_fd=fd)
            except FileNotFoundError:
                continue
    finally:
        os.close(fd)
    os.rmdir(folder)


class Lock:
    """Holds a container's state folder, so that two commands on it take turns. A context manager."""

    def __init__(self, root: str, id: str) -> None:
        try:
            self._fd = os.open(folder_of(root, id), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ContainerMissing(id) from None
        except NotADirectoryError:
            raise StateCorrupt(f"{folder_of(root, id)} is not a folder of a container") from None

    def __enter__(self) -> Lock:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def containers(root: str) -> Iterator[Container]:
    """Every container that can be read; one that is just being removed is passed over."""
    for id in list_ids(root):
        try:
            yield load(root, id)
        except ContainerMissing:
            continue
