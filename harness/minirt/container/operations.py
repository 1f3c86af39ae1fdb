"""The steps on the way from a fresh child to a container's process: frozen records with a `perform`.

A plan is a list of them; the child runs the list from top to bottom and does nothing else. Each step's `title` is what an
error message names. A step uses the `Stage` it is given, system calls and nothing that would have to be imported.
"""

from __future__ import annotations

import errno

from harness.linux import capabilities, syscalls
from harness.linux import lean as os
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
        up_and_running = (0x1 | 0x40).to_bytes(2, "little" if little_endian() else "big")
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


class BecomeUser(Operation):
    """Drop the bounding set, become the process's user; what is permitted is kept for the last steps."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    umask: int | None
    bounding: int | None
    may_set_groups: bool

    @property
    def title(self) -> str:
        return f"become user {self.uid}:{self.gid}"

    def perform(self, stage: Stage) -> None:
        if self.bounding is not None:
            capabilities.set_bounding(self.bounding)
        syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
        if self.may_set_groups:
            stage.set_groups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 0)
        os.umask(0o022 if self.umask is None else self.umask)


class SetLabels(Operation):
    """Say which AppArmor profile and SELinux label the program gets when it is executed; empty: as it comes."""

    apparmor: str
    selinux: str

    @property
    def title(self) -> str:
        return " and ".join(
            f"set the {what} {name!r}"
            for what, name in (("AppArmor profile", self.apparmor), ("SELinux label", self.selinux))
            if name
        )

    def perform(self, stage: Stage) -> None:
        if self.apparmor:
            own = "self/attr/apparmor/exec"  # before Linux 5.8 it shares the file with other modules
            path = own if procfs.exists(stage.proc, own) else "self/attr/exec"
            procfs.write_file(stage.proc, path, f"exec {self.apparmor}")
        if self.selinux:
            procfs.write_file(stage.proc, "self/attr/exec", self.selinux)


class OwnStdio(Operation):
    """Give stdin, stdout and stderr to the process's user, who could not open them by their names (/dev/stdout) otherwise.

    The null device is everybody's. What belongs to nobody in a user namespace, or cannot be written to, stays as it is.
    """

    uid: int

    @property
    def title(self) -> str:
        return "give the process its standard streams"

    def perform(self, stage: Stage) -> None:
        null = os.makedev(1, 3)
        for fd in (0, 1, 2):
            found = os.fstat(fd)
            if found.st_uid == self.uid or found.st_rdev == null:
                continue
            try:
                os.fchown(fd, self.uid, -1)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EPERM, errno.EROFS, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise


class TryFolder(Operation):
    """Go to the working directory as root, who may go where the process's user may not; `ChangeFolder` has the last word."""

    cwd: str

    @property
    def title(self) -> str:
        return _chdir_title(self.cwd)

    def perform(self, stage: Stage) -> None:
        try:
            os.chdir(self.cwd)
        except PermissionError:
            return
        stage.arrived = True


class ChangeFolder(Operation):
    """Go to the working directory, unless we are there already. It has to be inside the root."""

    cwd: str

    @property
    def title(self) -> str:
        return _chdir_title(self.cwd)

    def perform(self, stage: Stage) -> None:
        if not stage.arrived:
            os.chdir(self.cwd)
        # A path through a descriptor (/proc/self/fd/N) may lead out of the root: the kernel then has no name for it.
        if not syscalls.getcwd().startswith("/"):
            raise OSError(2, "the working directory is outside of the container's root", self.cwd)


def _chdir_title(cwd: str) -> str:
    return f'chdir to cwd ("{cwd}") set in config.json'


class SetPrivileges(Operation):
    """The last steps: no_new_privs, the seccomp filter, the final capability sets."""

    no_new_privileges: bool
    effective: int | None
    permitted: int
    inheritable: int
    ambient: int
    seccomp: bytes = b""
    seccomp_flags: int = 0

    @property
    def title(self) -> str:
        return "set capabilities and seccomp"

    def perform(self, stage: Stage) -> None:
        admin = 1 << capabilities.BITS["CAP_SYS_ADMIN"]
        if self.effective is not None:
            # The filter needs either no_new_privs or CAP_SYS_ADMIN, so that one is let go of last.
            keep = 0
            if self.seccomp and not self.no_new_privileges:
                keep = admin & syscalls.capget()[1]
            asked = (self.effective, self.permitted, self.inheritable)
            try:
                syscalls.capset(asked[0] | keep, asked[1] | keep, asked[2])
                capabilities.set_ambient(self.ambient)
            except PermissionError:
                # "Runtimes SHOULD NOT fail if the container configuration requests capabilities that cannot be granted".
                own = syscalls.capget()[1]
                asked = (asked[0] & own, asked[1] & own, asked[2] & own)
                syscalls.capset(asked[0] | keep, asked[1] | keep, asked[2])
                capabilities.set_ambient(self.ambient & own)
        if self.no_new_privileges:
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        if self.seccomp:
            if self.seccomp_flags & syscalls.SECCOMP_FILTER_FLAG_NEW_LISTENER:
                self._load_and_tell(stage)
            else:
                syscalls.seccomp_filter(self.seccomp, self.seccomp_flags)
            if self.effective is not None and not self.no_new_privileges:
                syscalls.capset(*asked)

    def _load_and_tell(self, stage: Stage) -> None:
        """Load a filter that asks a listener, which answers nothing before the parent has sent it the descriptor."""
        # Whatever we call from the load on may be asked about, but for write(2): so all of it is prepared before. The
        # descriptor will be the lowest that is free.
        number = os.dup(0)
        os.close(number)
        told = f'["notify",{number}]'.encode()
        channel = stage.channel.fd
        listener = syscalls.seccomp_filter(self.seccomp, self.seccomp_flags)
        os.write(channel, told)
        if stage.channel.receive()[0] != "go":
            raise BrokenPipeError(32, "the runtime has gone away")
        os.close(listener)


def little_endian() -> bool:
    """Whether this machine is."""
    import sys

    return sys.byteorder == "little"
