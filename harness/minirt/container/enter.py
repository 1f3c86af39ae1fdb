"""Start one more process in a container that runs (exec)."""

from __future__ import annotations

import os

from harness.linux import syscalls
from harness.linux.namespaces import FLAGS, identity
from harness.minirt.container import operations, seccomp
from harness.minirt.container.launch import Birth, Launched, give_birth
from harness.minirt.container.operations import Operation, Stage
from harness.minirt.container.plan import privilege_step, process_steps
from harness.minirt.container.program import Program
from harness.minirt.container.spec import RLIMITS
from harness.minirt.container.terminal import OpenTerminal
from harness.minirt.errors import step_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.minirt.container.cgroup import Cgroup
    from harness.minirt.container.spec import Process


class JoinProcess(Operation):
    """Enter the namespaces of a process, all at once."""

    pidfd: int
    flags: int

    @property
    def title(self) -> str:
        return "enter the container's namespaces"

    def perform(self, stage: Stage) -> None:
        syscalls.setns(self.pidfd, self.flags)


def enter(
    target_pid: int,
    process: Process,
    cgroup: Cgroup,
    *,
    stdin: int,
    stdout: int,
    stderr: int,
    console: int = -1,
    seccomp_filter: seccomp.Compiled | None = None,
    keyring: str = "",
    preserved_fds: int = 0,
) -> Launched:
    """Start `process` beside `target_pid`: in its namespaces, its root and `cgroup`. The result is the caller's child.

    Raises `CommandError` (with `exit_code` 127 or 126) for a program that cannot be executed, `StepError` for anything else
    that fails on the way; there is no process then.
    """
    try:
        pidfd = syscalls.pidfd_open(target_pid)
    except OSError as error:
        raise step_error("find the container's process", error) from None
    joins: dict[str, int] = {}
    try:
        try:
            kinds = [kind for kind in FLAGS if identity(target_pid, kind) != identity("self", kind)]
            if "pid" in kinds:
                joins["pid"] = os.open(f"/proc/{target_pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise step_error("open the container's namespaces", error) from None
        steps = _steps(pidfd, kinds, process, cgroup, keyring)
        joins["process"] = pidfd
        birth = Birth(
            flags=0,
            operations=(*steps, privilege_step(process, seccomp_filter)),
            program=Program(process.args),
            cgroup_folder=cgroup.folders.get("", "") if cgroup.version == 2 else "",
            joins=joins,
            preserved_fds=preserved_fds,
        )
        return give_birth(birth, stdio=(stdin, stdout, stderr), gate=None, console=console, answers=lambda _: {})
    finally:
        if "pid" in joins:
            os.close(joins["pid"])
        os.close(pidfd)


def _steps(pidfd: int, kinds: list[str], process: Process, cgroup: Cgroup, keyring: str) -> Iterator[Operation]:
    if cgroup.version == 1 and cgroup.folders:
        yield operations.JoinCgroup(cgroup.join_files())
    if process.oom_score_adj is not None:
        yield operations.SetOomScore(process.oom_score_adj)
    names = {number: name for name, number in RLIMITS.items()}
    for limit in process.rlimits:
        yield operations.SetRlimit(names[limit.resource], limit.resource, limit.soft, limit.hard)
    flags = 0
    for kind in kinds:
        flags |= FLAGS[kind] if kind != "pid" else 0
    if flags:
        yield JoinProcess(pidfd, flags)
    if "user" in kinds:
        yield operations.BecomeRoot()
    if keyring:
        yield operations.NewKeyring(keyring)
    if process.terminal:
        yield OpenTerminal(process.user.uid, process.console_size, as_console=False)
    yield from process_steps(process, "user" in kinds)
