"""Start one more process in a container that runs (exec)."""

from __future__ import annotations

import os

from harness.linux import syscalls
from harness.linux.namespaces import FLAGS, identity
from harness.minirt.container import operations
from harness.minirt.container.boundary import seal_imports
from harness.minirt.container.launch import Birth, Launched, give_birth
from harness.minirt.container.operations import Operation, Stage
from harness.minirt.container.privileges import memory_step, privilege_step, process_steps, scheduling_is_wanted
from harness.minirt.container.process import RLIMITS
from harness.minirt.container.program import Leave, Program
from harness.minirt.container.reader import Reader
from harness.minirt.container.spec import PERSONALITIES, SPEC_VERSION
from harness.minirt.errors import step_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from harness.minirt.container import seccomp
    from harness.minirt.container.cgroup import Cgroup
    from harness.minirt.container.process import Process


_ADMIN = 1 << 21


class JoinProcess(Operation):
    """Enter the namespaces of a process, all at once."""

    pidfd: int
    flags: int

    @property
    def title(self) -> str:
        return "enter the container's namespaces"

    def perform(self, stage: Stage) -> None:
        if self.flags & syscalls.CLONE_NEWNS:
            seal_imports()
        syscalls.setns(self.pidfd, self.flags)


class JoinRoot(Operation):
    """Make a process's root the own one, where its container shares the mounts of whoever made it."""

    pid: int
    pidfd: int

    @property
    def title(self) -> str:
        return "enter the container's root"

    def perform(self, stage: Stage) -> None:
        root = os.open(f"/proc/{self.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        syscalls.pidfd_send_signal(self.pidfd, 0)  # it is still the process that it was
        seal_imports()
        os.fchdir(root)
        os.chroot(".")
        os.close(root)


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
    state: Callable[[], str] | None = None,
    beside: dict[str, Any] | None = None,
) -> Launched:
    """Start `process` beside `target_pid`: in its namespaces, its root and `cgroup`. The result is the caller's child.

    `state`: gives the text of the container's state, which the listener of a `seccomp_filter` that has one is sent. `beside`:
    what else of the container's config concerns each of its processes (see `state.Container`).

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
        # A normal user is let in by the user namespace alone, also where the process ids are: that is for a process in
        # between, for which there is no way back.
        detours = "user" in kinds and not syscalls.capget()[0] & _ADMIN
        entry = [*_entry_steps(target_pid, pidfd, kinds, process, cgroup, detours)]
        steps = [*(() if detours else entry), *_steps(kinds, process, keyring)]
        groups = beside["rdt"]["groups"] if beside and "rdt" in beside else ()
        if groups or scheduling_is_wanted(process):
            steps.append(operations.AskParent("scheduling"))
        if beside:
            steps += _inherited_steps(beside)
        joins["process"] = pidfd
        birth = Birth(
            flags=0,
            operations=(*steps, Leave(process.args), privilege_step(process, seccomp_filter)),
            program=Program(process.args),
            cgroup_folder=cgroup.folders.get("", "") if cgroup.version == 2 else "",
            joins=joins,
            preserved_fds=preserved_fds,
            foyer=tuple(entry) if detours else (),
        )

        def start() -> Launched:
            return give_birth(
                birth,
                stdio=(stdin, stdout, stderr),
                gate=None,
                console=console,
                answers=lambda pid: {
                    "scheduling": lambda _: _apply_scheduling(pid, process, groups),
                    "notify": lambda number: _notify(pid, number, seccomp_filter, state),
                },
            )

        initial = () if process.affinity is None else process.affinity.initial
        return _run_on(initial, start) if initial else start()
    finally:
        if "pid" in joins:
            os.close(joins["pid"])
        os.close(pidfd)


def _entry_steps(
    target_pid: int, pidfd: int, kinds: list[str], process: Process, cgroup: Cgroup, at_once: bool
) -> Iterator[Operation]:
    if cgroup.version == 1 and cgroup.folders:
        yield operations.JoinCgroup(cgroup.join_files())
    if process.affinity is not None and process.affinity.final:
        from harness.minirt.container.scheduling import SetAffinity

        yield SetAffinity(process.affinity.final)
    else:
        yield operations.ResetAffinity()
    if process.oom_score_adj is not None:
        yield operations.SetOomScore(process.oom_score_adj)
    names = {number: name for name, number in RLIMITS.items()}
    for limit in process.rlimits:
        yield operations.SetRlimit(names[limit.resource], limit.resource, limit.soft, limit.hard)
    flags = 0
    for kind in kinds:
        flags |= FLAGS[kind] if kind != "pid" or at_once else 0
    if "mnt" not in kinds:
        yield JoinRoot(target_pid, pidfd)
    if flags:
        yield JoinProcess(pidfd, flags)
    if "user" in kinds:
        yield operations.BecomeRoot()


def _steps(kinds: list[str], process: Process, keyring: str) -> Iterator[Operation]:
    if keyring:
        yield operations.NewKeyring(keyring)
    if process.terminal:
        from harness.minirt.container.terminal import OpenTerminal

        yield OpenTerminal(process.user.uid, process.console_size, as_console=False)
    yield from process_steps(process, "user" in kinds)


def _run_on(cpus: tuple[int, ...], start: Callable[[], Launched]) -> Launched:
    """Start on these CPUs, "before the transition to container's cgroup": a child is born on its parent's."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        raise step_error("set the initial CPU affinity", error) from None
    try:
        return start()
    finally:
        os.sched_setaffinity(0, before)


def _inherited_steps(beside: dict[str, Any]) -> Iterator[Operation]:
    """What the container's first process has, and the kernel does not hand to those that are not its children."""
    linux = Reader(beside, "linux")
    persona, policy = linux.object("personality"), linux.object("memoryPolicy")
    if persona is not None:
        yield operations.SetPersonality(persona.choice("domain", PERSONALITIES))
    if policy is not None:
        from harness.minirt.container.scheduling import parse_memory_policy

        yield memory_step(parse_memory_policy(policy))


def _apply_scheduling(pid: int, process: Process, groups: Sequence[str]) -> None:
    from harness.minirt.container.scheduling import apply_scheduling

    if groups:
        from harness.minirt.container.rdt import assign

        assign(groups, pid)
    apply_scheduling(pid, process)


def _notify(pid: int, number: int, profile: seccomp.Compiled | None, state: Callable[[], str] | None) -> None:
    from harness.minirt.container.listener import send_descriptor

    if profile is not None and profile.listener is not None:
        send_descriptor(pid, number, profile.listener, SPEC_VERSION, "{}" if state is None else state())
