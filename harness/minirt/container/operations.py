"""The steps on the way from a fresh child to a container's process: frozen records with a `perform`.

A plan is a list of them; the child runs the list from top to bottom and does nothing else. Each step's `title` is what an
error message names. A step uses the `Stage` it is given, system calls and nothing that would have to be imported.
"""

from __future__ import annotations

import errno
from sys import byteorder

from harness.linux import lean as os
from harness.linux import syscalls
from harness.linux.namespaces import FLAGS
from harness.minirt.container import procfs
from harness.minirt.container.boundary import seal_imports
from harness.minirt.container.files import write_file
from harness.minirt.container.idmap import OF_THE_CONTAINER, Maps, open_mapping
from harness.minirt.container.record import Record
from harness.minirt.container.rootfs import magic, refusal_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.minirt.container.channel import Channel
    from harness.minirt.container.gate import Gate


class Stage:
    """What the steps of one child share. `root`: descriptor of the root filesystem's mount, once there is one.

    `trees`: detached mounts that were prepared for it, by the key that their steps know. `mounts`: descriptors of mounts
    to which later steps come back, by their place in the container. `arrived`: whether the process is in its working
    directory. `jumps`: whether a trampoline executes the program (`harness.minirt.container.trampoline`), `waits`: whether it
    also waits at the gate; `trampoline`: its descriptor, once there is one. `first_free`: the first descriptor that the program is not to have.
    """

    __slots__ = (
        "_mappings",
        "_proc",
        "_top",
        "arrived",
        "channel",
        "console",
        "env",
        "first_free",
        "gate",
        "joins",
        "jumps",
        "mounts",
        "program",
        "root",
        "trampoline",
        "trees",
        "waits",
    )

    def __init__(
        self,
        channel: Channel,
        joins: dict[str, int],
        console: int,
        gate: Gate | None,
        jumps: bool = False,
        waits: bool = False,
    ) -> None:
        self.channel = channel
        self.joins = joins
        self.console = console
        self.gate = gate
        self.trampoline = -1
        self.jumps, self.waits = jumps, waits
        self.first_free = 3
        self.root = -1
        self._top = ""
        self.arrived = False
        self.trees: dict[str, int] = {}
        self.mounts: dict[str, int] = {}
        self._proc = -1
        self._mappings: dict[Maps, int] = {}
        self.program = ""
        self.env: list[str] = []

    def close_others(self, keep: Iterable[int]) -> None:
        """Close every descriptor that the program is not to have, but those that are kept, which are close-on-exec."""
        first = self.first_free
        for fd in sorted(keep):
            if fd < first:
                continue
            if fd > first:
                syscalls.close_range(first, fd - 1)
            first = fd + 1
        syscalls.close_range(first)

    def check_place(self, target: int, type: str, bind: bool) -> str:
        """Refuse to cover the root itself, or what is inside /proc, also where a link leads there; the true place."""
        if not self._top:
            self._top = os.readlink(magic(self.root)).rstrip("/")
        path = os.readlink(magic(target))
        place = path[len(self._top) :] or "/" if f"{path}/".startswith(f"{self._top}/") else ""
        refusal = refusal_of(place, type, bind)
        if refusal:
            raise OSError(errno.EINVAL, f"{place} {refusal}")
        return place

    @property
    def proc(self) -> int:
        """A descriptor of the machine's procfs (see `procfs`); opened by whoever asks first."""
        if self._proc < 0:
            self._proc = procfs.open_procfs()
        return self._proc

    def set_groups(self, groups: tuple[int, ...]) -> None:
        """Be in these groups. Who has mapped their own alone had to give up that right, and stays in those that they have."""
        try:
            os.setgroups(groups)
        except PermissionError:
            if groups or procfs.read_file(self.proc, "self/setgroups").strip() != "deny":
                raise

    def write_own(self, name: str, text: str) -> None:
        """Write to one of our own files in procfs."""
        try:
            procfs.write_file(self.proc, f"self/{name}", text)
        except PermissionError:
            # As long as nobody may look into us, they belong to the machine's root.
            syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
            try:
                procfs.write_file(self.proc, f"self/{name}", text)
            finally:
                syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)

    def mapping(self, maps: Maps) -> int:
        """A descriptor of what the kernel takes for that mapping of ids; made once."""
        if maps == OF_THE_CONTAINER:
            return self.joins["user"]
        if maps not in self._mappings:
            self._mappings[maps] = open_mapping(maps.uids, maps.gids)
        return self._mappings[maps]


class Operation(Record):
    """Base of all steps."""

    @property
    def title(self) -> str:
        return type(self).__name__

    def perform(self, stage: Stage) -> None:
        raise NotImplementedError


class JoinCgroup(Operation):
    """Enter cgroups by their ``cgroup.procs`` (v1, or v2 where the child was not born in it)."""

    files: tuple[str, ...]

    @property
    def title(self) -> str:
        return "join cgroup"

    def perform(self, stage: Stage) -> None:
        for path in self.files:
            write_file(path, "0")


class ResetAffinity(Operation):
    """Run on all CPUs that the cgroup has, whichever the caller was confined to."""

    @property
    def title(self) -> str:
        return "reset the CPU affinity"

    def perform(self, stage: Stage) -> None:
        # The kernel takes what the machine and the cpuset have of them.
        os.sched_setaffinity(0, range(os.sysconf("SC_NPROCESSORS_CONF")))


class Unshare(Operation):
    """Leave for new namespaces that must not be made by clone3: cgroup (after it was joined) and time."""

    flags: int

    @property
    def title(self) -> str:
        return "make namespaces"

    def perform(self, stage: Stage) -> None:
        syscalls.unshare(self.flags)


class JoinNamespaces(Operation):
    """Enter the namespaces that were given by path, in an order that keeps the right to enter the next."""

    kinds: tuple[str, ...]

    @property
    def title(self) -> str:
        return "join namespaces"

    def perform(self, stage: Stage) -> None:
        # One that belongs to the user namespace can only be entered from inside it, one of the machine's only before.
        if "mnt" in self.kinds:
            seal_imports()
        later = []
        for kind in self.kinds:
            if kind == "user":
                continue
            try:
                syscalls.setns(stage.joins[kind], FLAGS[kind])
            except PermissionError:
                later.append(kind)
        if "user" in self.kinds:
            syscalls.setns(stage.joins["user"], FLAGS["user"])
        for kind in later:
            syscalls.setns(stage.joins[kind], FLAGS[kind])


class AwaitIdMaps(Operation):
    """Let the parent write the id maps of the new user namespace. `by_user`: it is a normal user."""

    by_user: bool = False

    @property
    def title(self) -> str:
        return "map ids"

    def perform(self, stage: Stage) -> None:
        # The files of a process that nobody may look into belong to the machine's root.
        if self.by_user:
            syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
        stage.channel.ask("maps")
        if self.by_user:
            syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)


class BecomeRoot(Operation):
    """Become uid 0 and gid 0 of the user namespace."""

    @property
    def title(self) -> str:
        return "become root of the user namespace"

    def perform(self, stage: Stage) -> None:
        stage.set_groups(())
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


class TimeOffsets(Operation):
    """Set the clocks of a new time namespace."""

    text: str

    @property
    def title(self) -> str:
        return "set time offsets"

    def perform(self, stage: Stage) -> None:
        stage.write_own("timens_offsets", self.text)


class SetOomScore(Operation):
    """Write oom_score_adj, unless it has the value already (lowering it needs CAP_SYS_RESOURCE, keeping it does not)."""

    score: int

    @property
    def title(self) -> str:
        return f"set oom_score_adj to {self.score}"

    def perform(self, stage: Stage) -> None:
        if procfs.read_file(stage.proc, "self/oom_score_adj").strip() != str(self.score):
            stage.write_own("oom_score_adj", str(self.score))


class SetSysctl(Operation):
    """Set one sysctl of the container's own namespaces."""

    name: str
    """its path below /proc/sys"""
    value: str

    @property
    def title(self) -> str:
        return f"set sysctl {self.name}"

    def perform(self, stage: Stage) -> None:
        procfs.write_file(stage.proc, f"sys/{self.name}", self.value)


class SetNames(Operation):
    """Set host name and domain name."""

    hostname: str
    domainname: str

    @property
    def title(self) -> str:
        return "set the host name"

    def perform(self, stage: Stage) -> None:
        if self.hostname:
            syscalls.sethostname(self.hostname)
        if self.domainname:
            syscalls.setdomainname(self.domainname)


class RaiseLoopback(Operation):
    """Bring up ``lo`` of a new network namespace."""

    @property
    def title(self) -> str:
        return "bring up the loopback interface"

    def perform(self, stage: Stage) -> None:
        import fcntl
        from _socket import AF_INET, SOCK_CLOEXEC, SOCK_DGRAM, socket

        link = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC)
        up_and_running = (0x1 | 0x40).to_bytes(2, byteorder)
        fcntl.ioctl(link.fileno(), 0x8914, b"lo".ljust(16, b"\0") + up_and_running.ljust(24, b"\0"))  # SIOCSIFFLAGS
        link.close()


class AskParent(Operation):
    """Have the parent do something before the child goes on: run hooks, move network devices, set the scheduler."""

    word: str

    @property
    def title(self) -> str:
        return f"wait for {self.word}"

    def perform(self, stage: Stage) -> None:
        stage.channel.ask(self.word)


class SetPersonality(Operation):
    """Set the execution domain."""

    persona: int

    @property
    def title(self) -> str:
        return "set personality"

    def perform(self, stage: Stage) -> None:
        syscalls.personality(self.persona)


class SetRlimit(Operation):
    """Set one resource limit."""

    name: str
    resource: int
    soft: int
    hard: int

    @property
    def title(self) -> str:
        return f"set {self.name} to {self.soft}:{self.hard}"

    def perform(self, stage: Stage) -> None:
        syscalls.setrlimit(self.resource, self.soft, self.hard)


class NewKeyring(Operation):
    """Give the container a session keyring of its own, so that it cannot read the caller's."""

    name: str

    @property
    def title(self) -> str:
        return "make a session keyring"

    def perform(self, stage: Stage) -> None:
        try:
            syscalls.join_session_keyring(self.name)
        except OSError as error:
            if error.errno not in (38, 122, 1):  # ENOSYS, EDQUOT, EPERM: no keyrings, or none left
                raise
