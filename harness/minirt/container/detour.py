"""A birth by way of a process in between, which goes where its maker must not: from a user namespace there is no way back."""

from __future__ import annotations

import os

from harness.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_PID_BYTES = 4


def clone_by_detour(go: Callable[[], None], flags: int, cgroup_fd: int = -1) -> tuple[int, int]:
    """As `syscalls.clone3`, but from wherever `go` takes the process in between; the child is the caller's all the same.

    The process in between is born in `cgroup_fd`, and has ended when this returns. Raises `ChildProcessError` where it did not
    get that far: its reason is for `go` to tell.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    between, between_fd = syscalls.clone3(0, cgroup_fd=cgroup_fd)
    if between == 0:
        pid = -1
        try:
            go()
            # The caller hears of the child's end as it would of ours: the kernel takes over our own signal for it.
            pid, _ = syscalls.clone3(flags | syscalls.CLONE_PARENT, exit_signal=0)
            if pid:
                os.write(writing, pid.to_bytes(_PID_BYTES, "little"))
        finally:
            if pid:  # whoever is not the child must not get back into its maker's code
                os._exit(0)
        os.close(reading)
        os.close(writing)
        return 0, -1
    os.close(writing)
    with open(reading, "rb", buffering=0) as pipe:
        answer = pipe.read(_PID_BYTES)
    os.waitpid(between, 0)
    os.close(between_fd)
    if not answer:
        raise ChildProcessError(10, "the process in between has ended early")
    pid = int.from_bytes(answer, "little")
    return pid, syscalls.pidfd_open(pid)
