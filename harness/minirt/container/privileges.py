"""A process becomes the container's: its user, its working directory, its labels, and what is left of privileges.

It is the same for the container's first process and for one more (`exec`): the steps, and in which order they come.
"""

from __future__ import annotations

import errno

from harness.linux import capabilities, syscalls
from harness.linux import lean as os
from harness.minirt.container import procfs
from harness.minirt.container.operations import Operation, SetPersonality, Stage
from harness.minirt.container.process import Capabilities, Process
from harness.minirt.container.program import FindProgram
from harness.minirt.errors import Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.minirt.container import seccomp
    from harness.minirt.container.scheduling import MemoryPolicy


def scheduling_is_wanted(process: Process | None) -> bool:
    """Whether the runtime has to do something to the process from outside."""
    return process is not None and (process.scheduler is not None or process.io_priority is not None)


def memory_step(policy: MemoryPolicy) -> Operation:
    """The step that sets a memory policy."""
    from harness.minirt.container.scheduling import SetMemoryPolicy

    return SetMemoryPolicy(policy)


def capability_warnings(process: Process | None, in_user_namespace: bool) -> tuple[str, ...]:
    """What of the capabilities cannot be granted: "MUST be logged as a warning", and is no error."""
    if process is None or process.capabilities is None:
        return ()
    masks = process.capabilities
    lacking = (masks.effective & ~masks.permitted) | (masks.inheritable & ~masks.bounding)
    if not in_user_namespace:
        lacking |= (masks.effective | masks.permitted) & ~syscalls.capget()[1]
    # What is not permitted or not inheritable cannot be ambient either (capabilities(7)).
    powerless = masks.ambient & ~(masks.permitted & masks.inheritable & masks.bounding)
    if not lacking and not powerless:
        return ()
    return (
        *[f"process.capabilities: {name} cannot be granted" for name in capabilities.names_of(lacking)],
        *[
            f"can't raise ambient capability {name}: operation not permitted"
            for name in capabilities.names_of(powerless)
        ],
    )


def process_steps(process: Process, in_user_namespace: bool, persona: int | None = None) -> Iterator[Operation]:
    """The steps by which a process inside its namespaces becomes its user and finds its program."""
    user = process.user
    masks = process.capabilities or Capabilities()
    if persona is not None:
        yield SetPersonality(persona)
    if process.selinux or (process.apparmor and process.apparmor != "unconfined"):
        yield _labels(process)
    yield TryFolder(process.cwd)
    yield OwnStdio(user.uid)
    yield BecomeUser(
        user.uid,
        user.gid,
        user.groups,
        user.umask,
        masks.bounding,
        # In a user namespace without setgroups the call fails, and nothing is asked for then.
        may_set_groups=bool(user.groups) or not in_user_namespace,
    )
    yield ChangeFolder(process.cwd)
    yield FindProgram(process.args[0], process.env, user.uid, masks.effective & masks.permitted)


def privilege_step(process: Process, profile: seccomp.Compiled | None) -> Operation:
    """The step that gives up what is left of privileges."""
    masks = process.capabilities or Capabilities()
    return SetPrivileges(
        process.no_new_privileges,
        # What is not permitted cannot be effective, and what is not bounding not inheritable; see `capability_warnings`.
        masks.effective & masks.permitted,
        masks.permitted,
        masks.inheritable & masks.bounding,
        # The kernel takes only what is permitted and inheritable; engines write more and expect no error.
        masks.ambient & masks.permitted & masks.inheritable,
        b"" if profile is None else profile.code,
        0 if profile is None else profile.flags,
    )


def _labels(process: Process) -> Operation:
    """Refused here where the kernel has no such security module: a program without its profile is not to run."""
    apparmor = "" if process.apparmor == "unconfined" else process.apparmor
    if apparmor and not os.path.exists("/sys/kernel/security/apparmor"):
        raise Unsupported(f"process.apparmorProfile {apparmor!r}: this kernel has no AppArmor")
    if process.selinux:
        check_selinux("process.selinuxLabel", process.selinux)
    return SetLabels(apparmor, process.selinux)


def check_selinux(field: str, label: str) -> None:
    """Raises `Unsupported` for a label that nobody would enforce; `field` is where it stands."""
    if not os.path.exists("/sys/fs/selinux/enforce"):
        raise Unsupported(f"{field} {label!r}: this kernel has no SELinux")


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
