"""The verbs on a container that exists: start, state, kill, delete, pause, resume."""

from __future__ import annotations

import sys
from _signal import pidfd_send_signal  # type: ignore[import-not-found,unused-ignore]  # without the enumerations of `signal`

from harness.linux import lean as os
from harness.minirt.container import document, state
from harness.minirt.container.waiting import wait_until
from harness.minirt.errors import ContainerMissing, HookError, MinirtError, StateCorrupt, WrongState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.minirt.container.state import Container
    from harness.minirt.oci.arguments import Words
    from harness.minirt.oci.command import Context

_DEATH_TIMEOUT_S = 10.0


def start(context: Context, words: Words) -> int:
    """Let a created container execute its program, then run its poststart hooks."""
    id = words.arguments[0]
    with state.Lock(context.root, id):
        container = state.load(context.root, id)
        try:
            start_container(context, container)
        except HookError:
            # "stop the container, and continue the lifecycle at step 12": it is destroyed.
            destroy(context, container)
            raise
    return 0


def start_container(context: Context, container: Container) -> None:
    """Open the gate, run the poststart hooks. Raises `WrongState` unless the container is created, and what its last steps
    report; after a `HookError` the container is to be destroyed.
    """
    from harness.minirt.container.gate import open_gate

    status = state.status_of(context.root, container)
    if status == state.STOPPED:
        raise WrongState("cannot start a container that has stopped")
    if status == state.RUNNING:
        raise WrongState("cannot start an already running container")
    if status != state.CREATED:
        raise WrongState(f"cannot start a container in the {status} state")
    open_gate(state.folder_of(context.root, container.id), container.command)
    if container.hooks.get("poststart"):
        from harness.minirt.container.hooks import run_hooks

        text = document.render(state.state_document(container, state.RUNNING))
        run_hooks("poststart", container.hooks["poststart"], text)


def run_poststop_hooks(context: Context, container: Container) -> None:
    """Run them all; one that fails is warned of, and stops nothing (runtime.md "Lifecycle", 13)."""
    if not container.hooks.get("poststop"):
        return
    from harness.minirt.container.hooks import run_hooks

    text = document.render(state.state_document(container, state.STOPPED))
    for hook in container.hooks["poststop"]:
        try:
            run_hooks("poststop", (hook,), text)
        except HookError as error:
            context.warn(str(error))


def show_state(context: Context, words: Words) -> int:
    """Print the state document."""
    container = state.load(context.root, words.arguments[0])
    content = state.state_document(container, state.status_of(context.root, container))
    sys.stdout.write(document.render(content, "  ") + "\n")
    return 0


def kill(context: Context, words: Words) -> int:
    """Send a signal to a container that is created, running or paused: to its first process, with ``--all`` to all it has.

    SIGKILL goes to all in any case where the container has no pid namespace of its own, with which they would end.
    """
    from harness.minirt.container.signals import parse_signal

    container = state.load(context.root, words.arguments[0])
    signal = parse_signal((words.arguments[1] if len(words.arguments) > 1 else "") or "TERM")
    if words.has("all") or (signal == 9 and not container.own_pids and container.cgroup.folders):
        _signal_all(container, signal, words.has("all"))
    else:
        send_signal(container, signal)
    if signal == 9 and container.cgroup.version == 1 and container.cgroup.is_frozen():
        # A frozen process of v1 dies only once it is thawed.
        container.cgroup.thaw()
    return 0


def _signal_all(container: Container, signal: int, lenient: bool) -> None:
    if not container.cgroup.folders:
        # Without a cgroup only the first process is known.
        try:
            send_signal(container, signal)
        except WrongState:
            if not lenient:
                raise
        return
    if not lenient and not state.is_alive(container) and not container.cgroup.exists():
        raise WrongState("container not running")
    container.cgroup.signal_all(signal)


def send_signal(container: Container, signal: int) -> None:
    """Signal the first process and no other that has its number by now. Raises `WrongState`."""
    gone = WrongState("container not running")
    if not container.pid:
        raise gone
    try:
        pidfd = os.pidfd_open(container.pid)
    except ProcessLookupError:
        raise gone from None
    try:
        if not state.is_alive(container):
            raise gone
        pidfd_send_signal(pidfd, signal)
    except ProcessLookupError:
        raise gone from None
    finally:
        os.close(pidfd)


def delete(context: Context, words: Words) -> int:
    """Remove a container: stopped, or with ``--force`` in any state."""
    id, force = words.arguments[0], words.has("force")
    try:
        with state.Lock(context.root, id):
            try:
                container = state.load(context.root, id)
            except (ContainerMissing, StateCorrupt):
                # A folder without a (good) state: a create that was killed, or a file that broke.
                state.forget(context.root, id)
                if not force:
                    raise
                return 0
            status = state.status_of(context.root, container)
            if status != state.STOPPED and not force:
                # The specification demands it for a created one too ("Delete").
                raise WrongState(f"cannot delete container {id} that is not stopped: {status}")
            destroy(context, container)
    except ContainerMissing:
        if not force:
            raise
    return 0


def destroy(context: Context, container: Container) -> None:
    """Kill what is left, remove cgroup and state, run the poststop hooks."""
    if state.is_alive(container):
        send_signal(container, 9)
    container.cgroup.kill_all()
    if not wait_until(lambda: not state.is_alive(container), _DEATH_TIMEOUT_S):
        raise MinirtError(f"process {container.pid} of container {container.id} did not end")
    container.cgroup.remove()
    if container.beside.get("mounted"):
        from harness.minirt.container.inherited import unmount

        unmount(container.root, container.beside["mounted"])
    if container.beside.get("rdt", {}).get("removed"):
        from harness.minirt.container.rdt import remove

        remove(container.beside["rdt"]["removed"])
    state.forget(context.root, container.id)
    run_poststop_hooks(context, container)


def pause(context: Context, words: Words) -> int:
    """Freeze a container that is created or running."""
    id = words.arguments[0]
    with state.Lock(context.root, id):
        container = state.load(context.root, id)
        if state.status_of(context.root, container) not in (state.CREATED, state.RUNNING):
            raise WrongState("container not running")
        container.cgroup.freeze()
    return 0


def resume(context: Context, words: Words) -> int:
    """Thaw a paused container."""
    id = words.arguments[0]
    with state.Lock(context.root, id):
        container = state.load(context.root, id)
        if state.status_of(context.root, container) != state.PAUSED:
            raise WrongState("container not paused")
        container.cgroup.thaw()
    return 0


CALLS: dict[str, Callable[[Context, Words], int]] = {
    "start": start,
    "state": show_state,
    "kill": kill,
    "delete": delete,
    "pause": pause,
    "resume": resume,
}
