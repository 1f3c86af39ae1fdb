"""The cgroup of one container, on v1, on v2 and on the mix of both: make, limit, join, freeze, kill, remove.

On v1 only those controllers are used that a container needs: every further hierarchy costs a folder and a move at each
start. How limits become files is in `limits`. Raises `CgroupError`.
"""

from __future__ import annotations

import errno
from _signal import pidfd_send_signal  # type: ignore[import-not-found,unused-ignore]  # without the enumerations of `signal`

from harness.linux import lean as os
from harness.minirt.container.files import read_file, write_file
from harness.minirt.container.record import Record
from harness.minirt.container.waiting import wait_until
from harness.minirt.errors import CgroupError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from harness.minirt.container.resources import Resources
    from harness.minirt.container.systemd import Unit

_MOST_HELD = 200
"""processes that are held by descriptor at a time"""
_ALWAYS = ("cpu", "cpuacct", "memory", "pids", "freezer", "devices")
_V1_NAMES = frozenset((*_ALWAYS, "cpuset", "blkio", "hugetlb", "net_cls", "net_prio", "perf_event", "rdma", "misc"))


class Hierarchy(Record):
    """One mounted hierarchy. `own`: the cgroup of whoever read this, as a path below `folder`."""

    name: str
    """v1: the controllers, joined by commas, as the mount has them; v2: empty"""
    folder: str
    own: str


class Layout(Record):
    """What is mounted: `v1` by controller, `unified` the v2 tree if there is one."""

    v1: dict[str, Hierarchy]
    unified: Hierarchy | None

    @property
    def version(self) -> int:
        """2 only where no controller is on v1; a mix is treated as v1."""
        return 1 if self.v1 or self.unified is None else 2


def parse_layout(mountinfo: str, own: str, named: bool = False) -> Layout:
    """The layout in the texts of ``/proc/self/mountinfo`` and ``/proc/self/cgroup``.

    With `named` systemd's own hierarchy is among those of v1: it is where (or, in a mix, in the v2 tree) it looks for its
    units' processes, so a container of a unit has to be in it.
    """
    paths: dict[str, str] = {}
    for line in own.splitlines():
        _, joined, path = line.split(":", 2)
        for name in joined.split(","):
            paths[name] = path
    v1: dict[str, Hierarchy] = {}
    unified = None
    for line in mountinfo.splitlines():
        if " - cgroup" not in line:
            continue
        left, _, right = line.partition(" - ")
        words, (kind, _, options) = left.split(" "), right.split(" ", 2)
        root, folder = words[3], words[4]
        if kind == "cgroup2":
            unified = unified or Hierarchy("", folder, _below(paths.get("", "/"), root))
            continue
        names = [name for name in options.split(",") if name in _V1_NAMES or (named and name == "name=systemd")]
        for name in names:
            v1.setdefault(name, Hierarchy(",".join(names), folder, _below(paths.get(name, "/"), root)))
    return Layout(v1, unified)


def _below(path: str, root: str) -> str:
    """A cgroup's path below a mount that shows `root`."""
    if root != "/" and (path + "/").startswith(root + "/"):
        return path[len(root) :] or "/"
    return path


def read_layout(named: bool = False) -> Layout:
    """The layout as this process sees it now."""
    return parse_layout(read_file("/proc/self/mountinfo"), read_file("/proc/self/cgroup"), named)


class Cgroup(Record):
    """A container's cgroup. `folders`: by controller on v1, one under ``""`` on v2; empty: it has none of its own."""

    version: int
    folders: dict[str, str]
    unit: Unit | None = None
    """systemd's, where it makes the cgroup"""

    def as_document(self) -> dict[str, Any]:
        document: dict[str, Any] = {"version": self.version, "folders": self.folders}
        return document if self.unit is None else {**document, "unit": self.unit.as_document()}

    @property
    def distinct(self) -> tuple[str, ...]:
        """The folders, each once (v1 controllers can share a hierarchy)."""
        return tuple(dict.fromkeys(self.folders.values()))

    def pids(self) -> list[int]:
        """Every process in it and below."""
        return pids_below(self.folders[self.chief]) if self.folders else []

    @property
    def chief(self) -> str:
        """The hierarchy that processes are found by: "" on v2, the freezer on v1, else any; its folder may be divided."""
        return "freezer" if "freezer" in self.folders else next(iter(self.folders), "")

    def part(self, name: str) -> Cgroup:
        """A part of it that is told apart by a folder of its own in the chief hierarchy; limits stay those of the whole."""
        folders = {**self.folders, self.chief: f"{self.folders[self.chief]}/{name}"}
        return Cgroup(self.version, folders, self.unit)

    def exists(self) -> bool:
        return any(os.path.isdir(folder) for folder in self.distinct)

    def is_frozen(self) -> bool:
        """Whether it is frozen, or about to be."""
        try:
            if self.version == 2:
                return read_file(f"{self.folders['']}/cgroup.freeze").strip() == "1"
            return read_file(f"{self.folders['freezer']}/freezer.state").strip() != "THAWED"
        except (KeyError, OSError):
            return False

    def freeze(self, timeout_s: float = 10.0) -> None:
        """Stop every process in it; it is thawed again where that does not succeed."""
        if not self._freezes():
            raise CgroupError("cannot pause: the container has no cgroup with a freezer")
        try:
            if not wait_until(self._try_freeze, timeout_s):
                self.thaw()
                raise CgroupError(f"cannot pause: processes did not freeze within {timeout_s:g} s")
        except OSError as error:
            raise cgroup_error("cannot pause", error) from error

    def _freezes(self) -> bool:
        return ("" if self.version == 2 else "freezer") in self.folders

    def _try_freeze(self) -> bool:
        if self.version == 2:
            folder = self.folders[""]
            write_file(f"{folder}/cgroup.freeze", "1")
            return "frozen 1" in read_file(f"{folder}/cgroup.events")
        path = f"{self.folders['freezer']}/freezer.state"
        # A process that forks while it freezes leaves FREEZING behind until it is asked again.
        write_file(path, "FROZEN")
        return read_file(path).strip() == "FROZEN"

    def begin_freeze(self) -> None:
        """Ask once for every process to stop, without waiting until they have. Raises `OSError`."""
        self._try_freeze()

    def thaw(self) -> None:
        """Let its processes go on."""
        try:
            if self.version == 2:
                write_file(f"{self.folders['']}/cgroup.freeze", "0")
            elif "freezer" in self.folders:
                write_file(f"{self.folders['freezer']}/freezer.state", "THAWED")
        except OSError as error:
            raise cgroup_error("cannot resume", error) from error

    def thaw_parts(self) -> None:
        """Let its parts go on. Only a moment of killing freezes one (v1); who was killed in that moment has left it so."""
        if self.version == 2 or "freezer" not in self.folders:
            return
        with os.scandir(self.folders["freezer"]) as entries:
            for name in [entry.name for entry in entries if entry.is_dir()]:
                self.part(name).thaw()

    def signal_all(self, signal: int) -> None:
        """Send a signal to every process in it."""
        if signal == 9 and self.version == 2:
            try:
                write_file(f"{self.folders['']}/cgroup.kill", "1")
            except FileNotFoundError:
                pass
            else:
                return
        pids = self.pids()
        for first in range(0, len(pids), _MOST_HELD):
            self._signal(pids[first : first + _MOST_HELD], signal)

    def _signal(self, pids: list[int], signal: int) -> None:
        """Signal those that are its own: a container that forks fast can have the number of one that ended given to anybody."""
        held: dict[int, int] = {}
        try:
            for pid in pids:
                try:
                    held[pid] = os.pidfd_open(pid)
                except ProcessLookupError:
                    continue
            for pid in held.keys() & set(self.pids()):
                try:
                    pidfd_send_signal(held[pid], signal)
                except ProcessLookupError:
                    continue
        finally:
            for fd in held.values():
                os.close(fd)

    def kill_all(self, timeout_s: float = 10.0) -> None:
        """Kill every process in it, frozen ones too, and wait until it is empty."""
        if not self.folders or not self.exists():
            return

        def emptied() -> bool:
            if not self.pids():
                return True
            self.signal_all(9)
            if self.version == 1:
                self.thaw_parts()
                if self.is_frozen():
                    self.thaw()
            return not self.pids()

        if not wait_until(emptied, timeout_s):
            raise CgroupError(f"processes in {self.distinct[0]} did not end within {timeout_s:g} s: {self.pids()}")

    def remove(self, timeout_s: float = 5.0) -> None:
        """Remove it with everything below; nothing happens where it is gone."""
        if self.unit is not None:
            from harness.minirt.container import systemd

            systemd.stop(self.unit)
        for folder in self.distinct:
            failures: list[OSError] = []

            def gone(folder: str = folder, failures: list[OSError] = failures) -> bool:
                try:
                    _remove_tree(folder)
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        raise
                    failures.append(error)
                    return False
                return True

            try:
                if not wait_until(gone, timeout_s):
                    raise failures[-1]
            except OSError as error:
                raise cgroup_error("cannot remove the cgroup", error) from error

    def join_files(self) -> tuple[str, ...]:
        """The files into which a process of one thread writes "0" to enter.

        On v1 that is ``tasks``: moving the writing thread alone needs no lock over all forks of the machine, which
        ``cgroup.procs`` does, and with it often 10 ms of waiting for a grace period.
        """
        tree = self.folders.get("")  # v2, also beside v1, where systemd wants to have it
        return tuple(f"{folder}/{'cgroup.procs' if folder == tree else 'tasks'}" for folder in self.distinct)

    def settle(self) -> None:
        """To be called once the container's process is in it."""
        if self.unit is not None:
            from harness.minirt.container import systemd

            systemd.settle(self.unit)

    def apply(self, resources: Resources, devices: bool = True) -> None:
        """Write the limits of a new cgroup, and the rules for `devices`, which only the machine's root may."""
        if self.unit is not None:
            from harness.minirt.container import systemd

            resources = systemd.set_properties(self.unit, resources, self.version == 2, devices=devices)
        try:
            for path, value in self.files_of(resources, devices):
                self.write(path, value)
            if self.version == 2 and devices:
                from harness.minirt.container.device_filter import attach

                attach(self.folders[""], resources)
        except FileNotFoundError as error:
            what = os.path.basename(os.fsdecode(error.filename or ""))
            raise CgroupError(f"cannot set {what}: the kernel or the parent cgroup does not have it") from error
        except OSError as error:
            raise cgroup_error("cannot set a limit", error) from error

    def files_of(self, resources: Resources, devices: bool = True) -> list[tuple[str, str]]:
        """Path and text of each file that has to be written, in order. Raises `CgroupError`, and `SpecError`."""
        from harness.minirt.container.limits import limits_v1, limits_v2

        if self.version == 2:
            return [(f"{self.folders['']}/{name}", value) for name, value in limits_v2(resources)]
        wanted = []
        for controller, name, value in limits_v1(resources):
            if controller == "devices" and not devices:
                continue
            if controller not in self.folders:
                raise CgroupError(f"cannot set {name}: the {controller} controller is not mounted")
            wanted.append((f"{self.folders[controller]}/{name}", value))
        return wanted

    @staticmethod
    def write(path: str, value: str) -> None:
        """Write a limit, or what stands for it on this kernel. Raises `OSError`."""
        try:
            write_file(path, value)
        except FileNotFoundError:
            from harness.minirt.container.limits import stand_in

            folder, _, name = path.rpartition("/")
            other = stand_in(name, value)
            if other is None:
                raise
            if other[0]:
                write_file(f"{folder}/{other[0]}", other[1])

    def update(self, resources: Resources) -> None:
        """Change limits of a cgroup in use, all or none; what `resources` says of devices does not count."""
        from harness.minirt.container.updating import update

        update(self, resources)


NO_CGROUP = Cgroup(1, {})


def cgroup_of(document: dict[str, Any]) -> Cgroup:
    """Undo `Cgroup.as_document`."""
    unit = None
    if "unit" in document:
        from harness.minirt.container.systemd import unit_of_document

        unit = unit_of_document(document["unit"])
    return Cgroup(document["version"], document["folders"], unit)


def place_of(layout: Layout, path: str, id: str, resources: Resources, counted: tuple[str, ...] = ()) -> Cgroup:
    """Where a container's cgroup will be. `path`: cgroupsPath; empty: the id, below the caller's own cgroup.

    Absolute paths start at the hierarchy's mount, relative ones at the caller's own cgroup. `counted`: controllers of v1 that
    it is in without a limit of theirs, for their counters.
    """
    from harness.minirt.container.limits import limits_v1, limits_v2

    if path.count(":") == 2 and not path.startswith("/"):
        raise CgroupError(f"cgroupsPath {path!r} is meant for systemd's cgroups: --systemd-cgroup asks for them")
    if ".." in path.split("/"):
        raise CgroupError(f"cgroupsPath {path!r} holds '..'")
    path = path.rstrip("/") or id
    if layout.version == 2:
        assert layout.unified is not None
        for _ in limits_v2(resources):
            # What cannot be translated is refused here, before anything is made.
            continue
        return Cgroup(2, {"": _folder(layout.unified, path)})
    wanted = [*_ALWAYS, *counted, *(controller for controller, _, _ in limits_v1(resources))]
    named = [name for name in layout.v1 if name.startswith("name=")]
    folders = {name: _folder(layout.v1[name], path) for name in dict.fromkeys((*wanted, *named)) if name in layout.v1}
    if named and layout.unified is not None:
        folders[""] = _folder(layout.unified, path)
    return Cgroup(1, folders)


def find(layout: Layout, path: str) -> Cgroup:
    """What there is of a cgroup by its path, in whichever hierarchies; empty where there is nothing."""
    if layout.version == 2:
        assert layout.unified is not None
        places = {"": _folder(layout.unified, path)}
    else:
        places = {name: _folder(hierarchy, path) for name, hierarchy in layout.v1.items()}
    return Cgroup(layout.version, {name: folder for name, folder in places.items() if os.path.isdir(folder)})


def folders_of(layout: Layout, path: str) -> tuple[str, ...]:
    """Where a cgroup can be: in the hierarchies of all controllers, also of those that only some containers need."""
    hierarchies = [layout.unified] if layout.version == 2 and layout.unified else list(layout.v1.values())
    return tuple(dict.fromkeys(_folder(hierarchy, path) for hierarchy in hierarchies))


def _folder(hierarchy: Hierarchy, path: str) -> str:
    start = hierarchy.folder if path.startswith("/") else f"{hierarchy.folder}{hierarchy.own.rstrip('/')}"
    return f"{start}/{path.lstrip('/')}"


def create(layout: Layout, cgroup: Cgroup) -> None:
    """Make the folders.

    Refuses a cgroup that has processes, as two containers would kill each other's, and one that is frozen, as its first
    process would never get anywhere: nothing has been made then. A unit of systemd's is started first; it refuses a second one
    with the name.
    """
    if cgroup.unit is None:
        _make_folders(layout, cgroup, alone=True)
        return
    from harness.minirt.container import systemd

    systemd.start(cgroup.unit, cgroup.version == 2)
    try:
        _make_folders(layout, cgroup, alone=False)
    except BaseException:
        systemd.stop(cgroup.unit)
        raise


def _make_folders(layout: Layout, cgroup: Cgroup, alone: bool) -> None:
    try:
        folders = cgroup.distinct if alone else ()
        pids = {pid for folder in folders if os.path.isdir(folder) for pid in pids_below(folder)}
        if pids:
            raise CgroupError(f"container's cgroup is not empty: {len(pids)} process(es) found")
        if _is_held(cgroup):
            raise CgroupError("container's cgroup unexpectedly frozen")
        if cgroup.version == 2:
            assert layout.unified is not None
            _make_v2(layout.unified.folder, cgroup.folders[""])
        else:
            for name, folder in cgroup.folders.items():
                _make(folder)
                if name == "cpuset":
                    _inherit_cpuset(layout.v1[name].folder, folder)
    except OSError as error:
        raise cgroup_error("cannot make the cgroup", error) from error
    if _is_held(cgroup):
        cgroup.remove()
        raise CgroupError("container's cgroup unexpectedly frozen: one above it is")


def _is_held(cgroup: Cgroup) -> bool:
    """Whether nobody in it could go on, because it or one above it is frozen."""
    if cgroup.version == 1:
        return cgroup.is_frozen()  # the state of v1 counts those above
    try:
        return "frozen 1" in read_file(f"{cgroup.folders['']}/cgroup.events")
    except FileNotFoundError:
        return False


def _make(folder: str) -> None:
    """Make a folder with its parents, where it is not there."""
    try:
        os.mkdir(folder, 0o755)
    except FileNotFoundError:
        _make(os.path.dirname(folder))
        os.mkdir(folder, 0o755)
    except FileExistsError:
        return


def _make_v2(top: str, folder: str) -> None:
    words = folder[len(top) :].strip("/").split("/")
    here = top
    for word in words:
        here_controllers = read_file(f"{here}/cgroup.controllers").split()
        enabled = read_file(f"{here}/cgroup.subtree_control").split()
        for name in here_controllers:
            if name not in enabled:
                try:
                    write_file(f"{here}/cgroup.subtree_control", f"+{name}")
                except OSError:
                    # Someone's processes are in the parent: a limit that needs the controller will say so.
                    continue
        here = f"{here}/{word}"
        try:
            os.mkdir(here, 0o755)
        except FileExistsError:
            continue


def _inherit_cpuset(top: str, folder: str) -> None:
    here = top
    for word in folder[len(top) :].strip("/").split("/"):
        parent, here = here, f"{here}/{word}"
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not read_file(f"{here}/{name}").strip():
                write_file(f"{here}/{name}", read_file(f"{parent}/{name}").strip())


def pids_below(folder: str) -> list[int]:
    """Every process in a folder's cgroup and below; none where it is gone."""
    pids: list[int] = []
    try:
        pids.extend(int(word) for word in read_file(f"{folder}/cgroup.procs").split())
        for below in _folders_in(folder):
            pids.extend(pids_below(below))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            raise
    return pids


def _folders_in(folder: str) -> Iterable[str]:
    with os.scandir(folder) as entries:
        return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


def _remove_tree(folder: str) -> None:
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
        below = _folders_in(folder)
        for inner in below:
            _remove_tree(inner)
        if not below:
            raise
        os.rmdir(folder)


def cgroup_error(what: str, error: OSError) -> CgroupError:
    """What could not be done to a cgroup, with the kernel's reason and the file."""
    about = f" ({os.fsdecode(error.filename)})" if error.filename else ""
    return CgroupError(f"{what}: {os.strerror(error.errno or 0).lower()}{about}")
