"""Start a container: one clone3, and a child that performs its plan straight down to execve.

May be called from a long-lived process, provided that it has one thread: nothing of the caller changes, the child inherits
no descriptor that it does not need, and what went wrong in it comes back as the exception it was.
"""

from __future__ import annotations

from harness.linux import lean as os
from harness.linux import syscalls
from harness.minirt.container import cgroup as cgroups
from harness.minirt.container import channel as channels
from harness.minirt.container.files import write_file
from harness.minirt.container.hooks import run_hooks
from harness.minirt.container.idmap import write_maps
from harness.minirt.container.operations import JoinNamespaces, Stage
from harness.minirt.container.plan import state_text
from harness.minirt.container.procfs import in_user_namespace
from harness.minirt.container.program import AwaitStart
from harness.minirt.container.record import Record, changed
from harness.minirt.errors import StepError, step_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from harness.minirt.container.gate import Gate
    from harness.minirt.container.netdevices import Moves
    from harness.minirt.container.operations import Operation
    from harness.minirt.container.plan import Plan
    from harness.minirt.container.program import Program
    from harness.minirt.container.rdt import Group
    from harness.minirt.container.spec import IdMap


class Launched(Record):
    """A process that runs (or waits at its gate). The caller owns `pidfd`, and reaps `pid`, its child."""

    pid: int
    pidfd: int
    mounted: int = 0
    """the number of its root's mount among the machine's own, if it shares these (see `inherited`)"""


class Birth(Record):
    """What a child is made of; `launch` and `enter` each fill one in."""

    flags: int
    operations: tuple[Operation, ...]
    program: Program
    cgroup_folder: str = ""
    """a v2 cgroup to be born in"""
    joins: dict[str, int] = {}  # noqa: RUF012
    """descriptors of namespaces to join; "pid" is dealt with before the birth"""
    preserved_fds: int = 0
    foyer: tuple[Operation, ...] = ()
    """what a process in between performs before it gives birth to the child; it then joins all namespaces"""


def launch(
    plan: Plan,
    *,
    stdin: int,
    stdout: int,
    stderr: int,
    gate: Gate | None = None,
    console: int = -1,
    jumps: bool = False,
    waits: bool = False,
    born: Callable[[int], None] | None = None,
) -> Launched:
    """Make the container's cgroup and start its first process with the three descriptors as its stdio.

    With a `gate` the process is set up and waits there, else it has executed its program when this returns. `console` is a
    connected socket, to which the terminal of a plan that has one is sent. With `jumps` a trampoline executes the
    program, and with `waits` it also waits at the gate. `born` is called with the pid as soon as there is one, while the child sets itself up.
    Hooks that belong to the runtime's side run at their moments. Raises `MinirtError`; then there is neither a process nor a cgroup.
    """
    joins: dict[str, int] = {}
    try:
        for kind, path in plan.joins.items():
            try:
                joins[kind] = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                raise step_error(f"open the {kind} namespace", error) from None
        gated = () if gate is None or waits else (AwaitStart(),)
        birth = Birth(
            flags=plan.clone_flags,
            operations=(*plan.setup, *gated, *plan.finish),
            program=plan.program,
            cgroup_folder=plan.cgroup.folders.get("", "") if plan.cgroup.version == 2 else "",
            joins=joins,
            preserved_fds=plan.preserved_fds,
            foyer=plan.foyer,
        )
        moved: list[Moves] = []
        grouped = False
        mounted: list[int] = []
        cgroups.create(plan.layout, plan.cgroup)
        try:
            plan.cgroup.apply(plan.resources, plan.limits_devices)
            if plan.rdt is not None:
                _make_rdt_group(plan.rdt)
                grouped = True
            launched = give_birth(
                birth,
                stdio=(stdin, stdout, stderr),
                gate=gate,
                console=console,
                jumps=jumps,
                waits=waits,
                born=born,
                answers=lambda pid: {
                    "mounted": lambda _: mounted.append(_number_of_root(plan)),
                    "maps": lambda _: _write_id_maps(pid, plan.uid_maps, plan.gid_maps),
                    "offsets": lambda _: _write_time_offsets(pid, plan.time_offsets),
                    "devices": lambda _: _move_devices(plan, pid, moved),
                    "hooks": lambda _: _run_parent_hooks(plan, pid),
                    "scheduling": lambda _: _apply_scheduling(plan, pid),
                    "notify": lambda number: _notify(plan, pid, number),
                },
            )
            plan.cgroup.settle()
            return changed(launched, mounted=mounted[0]) if mounted else launched
        except BaseException:
            for moves in moved:
                moves.undo()
            for number in mounted:
                _unmount_root(plan, number)
            if grouped:
                remove_rdt_group(plan)
            plan.cgroup.kill_all()
            plan.cgroup.remove()
            raise
        finally:
            for moves in moved:
                moves.close()
    finally:
        for fd in joins.values():
            os.close(fd)


def give_birth(
    birth: Birth,
    *,
    stdio: tuple[int, int, int],
    gate: Gate | None,
    console: int,
    jumps: bool = False,
    waits: bool = False,
    born: Callable[[int], None] | None = None,
    answers: Callable[[int], dict[str, Callable[[Any], None]]],
) -> Launched:
    """Clone the child and see it through. On any error it is killed and reaped."""
    ours, theirs = channels.pair()
    cgroup_fd = own_pid_namespace = -1
    if "pid" in birth.joins and not birth.foyer and in_user_namespace():
        # From there we could not get back to the pid namespace that we are in, for that belongs to the machine.
        birth = changed(birth, foyer=(JoinNamespaces(("pid",)),))
    stage = Stage(theirs, birth.joins, console, gate, jumps, waits)
    try:
        if birth.cgroup_folder:
            cgroup_fd = os.open(birth.cgroup_folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if "pid" in birth.joins and not birth.foyer:
                # A pid namespace is entered by the children of whoever joins it: for one clone, that is us.
                own_pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
                syscalls.setns(birth.joins["pid"], syscalls.CLONE_NEWPID)
            try:
                if birth.foyer:
                    from harness.minirt.container.detour import clone_by_detour

                    pid, pidfd = clone_by_detour(lambda: _pass_foyer(birth, stage), birth.flags, cgroup_fd)
                else:
                    pid, pidfd = syscalls.clone3(birth.flags, cgroup_fd=cgroup_fd)
                if pid == 0:
                    _be_child(birth, stage, stdio)
            finally:
                if own_pid_namespace >= 0:
                    syscalls.setns(own_pid_namespace, syscalls.CLONE_NEWPID)
        except ChildProcessError:
            theirs.close()
            ours.follow({})  # raises what it tells
            raise StepError("clone", 0, "the process in between has ended without a word") from None
        except OSError as error:
            raise step_error("clone", error) from None
        theirs.close()
        try:
            try:
                if born is not None:
                    born(pid)
                waits = ours.follow(answers(pid))
            except OSError as error:
                raise step_error("prepare the child", error) from None
            if gate is not None and not waits:
                raise StepError("wait for the child", 0, "it ended before it was ready")
        except BaseException:
            try:
                syscalls.pidfd_send_signal(pidfd, 9)
            except ProcessLookupError:
                pass
            os.waitpid(pid, 0)
            os.close(pidfd)
            raise
        return Launched(pid, pidfd)
    finally:
        ours.close()
        theirs.close()
        for fd in (cgroup_fd, own_pid_namespace):
            if fd >= 0:
                os.close(fd)


def _pass_foyer(birth: Birth, stage: Stage) -> None:
    """What the process in between does; tells what went wrong, and ends."""
    step = "begin"
    try:
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        _ = stage.proc  # while /proc is the machine's
        for operation in birth.foyer:
            step = operation.title
            operation.perform(stage)
    except BaseException as error:
        stage.channel.report(step, error)
        os._exit(1)


def _be_child(birth: Birth, stage: Stage, stdio: tuple[int, int, int]) -> None:
    """Never returns."""
    step = "begin"
    gate, console = stage.gate, stage.console
    try:
        # Whoever shares our namespaces shall not look into the runtime before it has become the container.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        os.setsid()
        os.umask(0)
        keep = {stage.channel.fd, stage.proc, console, *birth.joins.values(), *stage.trees.values()}
        if gate is not None:
            keep |= gate.fds()
        stage.first_free = 3 + birth.preserved_fds
        moved = [os.dup(fd) if fd < 3 and fd != number else fd for number, fd in enumerate(stdio)]
        for number, fd in enumerate(moved):
            os.dup2(fd, number)
        for number in range(3):
            os.set_inheritable(number, True)
        stage.close_others(keep)
        for operation in birth.operations:
            step = operation.title
            operation.perform(stage)
        birth.program.execute(stage)
    except BaseException as error:
        stage.channel.report(step, error)
    finally:
        os._exit(127)


def _write_id_maps(pid: int, uid_maps: tuple[IdMap, ...], gid_maps: tuple[IdMap, ...]) -> None:
    try:
        write_maps(pid, uid_maps, gid_maps)
    except OSError as error:
        raise step_error("map ids", error) from None


def _write_time_offsets(pid: int, offsets: dict[str, tuple[int, int]]) -> None:
    """Set the clocks of the child's new time namespace: the file is the machine's root's, also where that namespace is not."""
    lines = [f"{clock} {secs} {nanosecs}\n" for clock, (secs, nanosecs) in offsets.items()]
    try:
        write_file(f"/proc/{pid}/timens_offsets", "".join(lines))
    except OSError as error:
        raise step_error("set time offsets", error) from None


def _number_of_root(plan: Plan) -> int:
    from harness.minirt.container.inherited import number_at

    return number_at(plan.root)


def _unmount_root(plan: Plan, number: int) -> None:
    """An error hides none that led here."""
    from harness.minirt.container.inherited import unmount

    try:
        unmount(plan.root, number)
    except OSError:
        return


def _run_parent_hooks(plan: Plan, pid: int) -> None:
    state = state_text(plan.version, plan.id, "creating", plan.bundle, plan.annotations).replace("@pid@", str(pid))
    for name in ("prestart", "createRuntime"):
        run_hooks(name, plan.hooks.get(name, ()), state)


def _move_devices(plan: Plan, pid: int, moved: list[Moves]) -> None:
    from harness.minirt.container.netdevices import Moves

    # Open until the container is there: its namespace has to outlive a failure, to be left again.
    moved.append(Moves(pid))
    moved[-1].move(plan.net_devices)


def _make_rdt_group(group: Group) -> None:
    from harness.minirt.container.rdt import create

    create(group)


def remove_rdt_group(plan: Plan) -> None:
    """Undo what was made for ``linux.intelRdt``; an error here hides none that led to it."""
    if plan.rdt is None or not plan.rdt.removed:
        return
    from harness.minirt.container.rdt import remove

    try:
        remove(plan.rdt.removed)
    except StepError:
        return


def _apply_scheduling(plan: Plan, pid: int) -> None:
    if plan.rdt is not None:
        from harness.minirt.container.rdt import assign

        assign((plan.rdt.folder, plan.rdt.monitor), pid)
    if plan.process is not None:
        from harness.minirt.container.scheduling import apply_scheduling

        apply_scheduling(pid, plan.process)


def _notify(plan: Plan, pid: int, number: int) -> None:
    from harness.minirt.container.listener import send_descriptor

    if plan.seccomp is not None and plan.seccomp.listener is not None:
        state = state_text(plan.version, plan.id, "creating", plan.bundle, plan.annotations).replace("@pid@", str(pid))
        send_descriptor(pid, number, plan.seccomp.listener, plan.version, state)
