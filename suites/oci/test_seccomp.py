"""System calls that are filtered (config-linux.md, "Seccomp"): by what they then do."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.model.area import OciArea
from harness.session.oci import OciTrial
from harness.session.oci_breach import drops, puts
from harness.session.oci_facts import status_field

pytestmark = [pytest.mark.operation(OciArea.SECCOMP), pytest.mark.kernel]

EPERM, ENOSYS, EXDEV, ENOSPC = 1, 38, 18, 28
RULE = "linux.seccomp.syscalls"


def filtered(*rules: dict[str, Any], default: str = "SCMP_ACT_ALLOW", **more: Any) -> dict[Any, Any]:
    return {"linux.seccomp": {"defaultAction": default, "syscalls": list(rules), **more}}


def rule(action: str, *names: str, **more: Any) -> dict[str, Any]:
    return {"names": list(names), "action": action, **more}


MKDIR = ("mkdir", "mkdirat")


def made(oci: OciTrial, changes: dict[Any, Any]) -> tuple[int, str]:
    """Status of a mkdir in a container, and what it said."""
    return oci.probe("try:mkdir /tmp/x", changes=changes).tried("mkdir /tmp/x")


@pytest.mark.breach(drops("linux.seccomp"))
def test_a_filter_is_loaded(oci: OciTrial) -> None:
    """Seccomp: "seccomp (object, OPTIONAL) ... provides application sandboxing mechanism": the kernel has a filter for the process
    (mode 2).
    """
    facts = oci.probe("proc:status", changes=filtered(rule("SCMP_ACT_ERRNO", "swapon")))
    assert facts.status("Seccomp") == "2"


@pytest.mark.breach(puts("linux.seccomp", {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}))
def test_errno(oci: OciTrial) -> None:
    """Seccomp, SCMP_ACT_ERRNO: the call fails; errnoRet is "EPERM" by default."""
    status, said = made(oci, filtered(rule("SCMP_ACT_ERRNO", *MKDIR)))
    assert status != 0
    assert "Operation not permitted" in said


@pytest.mark.breach(drops(f"{RULE}.0.errnoRet"))
def test_errno_as_given(oci: OciTrial) -> None:
    """Seccomp: "errnoRet (uint, OPTIONAL) - the errno return code to use": a filter that differs in nothing else is another one."""
    for number, words in ((EXDEV, "ross-device"), (ENOSPC, "No space left")):
        _, said = made(oci, filtered(rule("SCMP_ACT_ERRNO", *MKDIR, errnoRet=number)))
        assert words in said


@pytest.mark.breach(puts("linux.seccomp.defaultAction", "SCMP_ACT_ALLOW"))
def test_default_action(oci: OciTrial) -> None:
    """Seccomp: "defaultAction (string, REQUIRED) - the default action for seccomp": of what no rule speaks."""
    allowed = rule("SCMP_ACT_ALLOW", *(name for name in every_call() if name not in MKDIR))
    status, said = made(oci, filtered(allowed, default="SCMP_ACT_ERRNO"))
    assert status != 0
    assert "Operation not permitted" in said


@pytest.mark.breach(drops("linux.seccomp.defaultErrnoRet"))
def test_default_errno(oci: OciTrial) -> None:
    """Seccomp: "defaultErrnoRet (uint, OPTIONAL) - the errno return code to use"."""
    allowed = rule("SCMP_ACT_ALLOW", *(name for name in every_call() if name not in MKDIR))
    _, said = made(oci, filtered(allowed, default="SCMP_ACT_ERRNO", defaultErrnoRet=EXDEV))
    assert "ross-device" in said


def every_call() -> list[str]:
    """The calls that a shell, its tools and a runtime at its last steps may make: those of Docker's default profile."""
    return CALLS.split()


@pytest.mark.breach(drops("linux.seccomp"))
@pytest.mark.parametrize("action", ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP"])
def test_kill_and_trap(oci: OciTrial, action: str) -> None:
    """Seccomp: SCMP_ACT_KILL and its like end the process or thread, SCMP_ACT_TRAP by SIGSYS: the shell sees 128 + 31."""
    status, _ = made(oci, filtered(rule(action, *MKDIR)))
    assert status == 128 + 31


@pytest.mark.breach(puts(f"{RULE}.0.action", "SCMP_ACT_ERRNO"))
def test_log_lets_through(oci: OciTrial) -> None:
    """Seccomp, SCMP_ACT_LOG: the call is done, and logged."""
    status, said = made(oci, filtered(rule("SCMP_ACT_LOG", *MKDIR)))
    assert (status, said) == (0, "")


@pytest.mark.breach(puts(f"{RULE}.0.action", "SCMP_ACT_ALLOW"))
def test_trace_without_a_tracer(oci: OciTrial) -> None:
    """Seccomp, SCMP_ACT_TRACE: without a tracer the call fails with ENOSYS (seccomp(2))."""
    status, said = made(oci, filtered(rule("SCMP_ACT_TRACE", *MKDIR, errnoRet=1)))
    assert status != 0
    assert "not implemented" in said


OPERATORS = {
    # exit_group(status) is let be or made to fail by its argument; a shell says which with its own status.
    "SCMP_CMP_EQ": ({"value": 5}, {5}),
    "SCMP_CMP_NE": ({"value": 5}, {3, 7}),
    "SCMP_CMP_LT": ({"value": 5}, {3}),
    "SCMP_CMP_LE": ({"value": 5}, {3, 5}),
    "SCMP_CMP_GT": ({"value": 5}, {7}),
    "SCMP_CMP_GE": ({"value": 5}, {5, 7}),
    "SCMP_CMP_MASKED_EQ": ({"value": 2, "valueTwo": 2}, {3, 7}),
}


@pytest.mark.breach(drops(f"{RULE}.0.args"))
@pytest.mark.parametrize("operator", OPERATORS)
def test_operator(oci: OciTrial, operator: str) -> None:
    """Seccomp: args: "index", "value", "valueTwo" and "op": "the operator for syscall arguments": for umask(3), (5) and (7)."""
    compared, hit = OPERATORS[operator]
    failing = rule("SCMP_ACT_ERRNO", "umask", args=[{"index": 0, "op": operator, **compared}])
    script = "for mask in 3 5 7; do umask 0; umask $mask; grep Umask /proc/self/status; done"
    masks = [int(line.split()[1], 8) for line in oci.script(script, filtered(failing)).splitlines()]
    assert {mask for mask, found in zip((3, 5, 7), masks, strict=True) if found != mask} == hit


@pytest.mark.breach(drops(f"{RULE}.0.args.1"))
def test_all_arguments_have_to_match(oci: OciTrial) -> None:
    """Seccomp: args is "an array of the specific syscall in seccomp": a rule holds where all of them do."""
    both = [{"index": 1, "value": 0, "op": "SCMP_CMP_GT"}, {"index": 0, "value": 99999, "op": "SCMP_CMP_EQ"}]
    said = oci.script("kill -CONT $$ && echo sent", filtered(rule("SCMP_ACT_ERRNO", "kill", args=both)))
    assert said == "sent\n"


@pytest.mark.breach(puts("process.noNewPrivileges", True))
def test_a_filter_needs_no_new_privileges_not(oci: OciTrial) -> None:
    """Seccomp, Linux process: noNewPrivileges is asked for by itself: a filter does not bring it along."""
    facts = oci.probe("proc:status", changes=filtered(rule("SCMP_ACT_ERRNO", "swapon")))
    assert (facts.status("Seccomp"), facts.status("NoNewPrivs")) == ("2", "0")


@pytest.mark.breach(drops("linux.seccomp"))
def test_a_filter_with_no_new_privileges(oci: OciTrial) -> None:
    """Seccomp together with noNewPrivileges, as every engine asks for it, and as a user without capabilities."""
    changes = filtered(rule("SCMP_ACT_ERRNO", *MKDIR))
    user = {"process.user": {"uid": 1000, "gid": 1000}, "process.noNewPrivileges": True}
    facts = oci.probe("proc:status", "try:mkdir /tmp/x", changes={**changes, **user})
    assert (facts.status("Seccomp"), facts.status("NoNewPrivs")) == ("2", "1")
    assert facts.tried("mkdir /tmp/x")[0] != 0


@pytest.mark.breach(drops("linux.seccomp"))
def test_unknown_calls_are_left_out(oci: OciTrial) -> None:
    """Seccomp: names that a machine's libseccomp does not know are passed over, as in the profiles of engines for newer kernels."""
    status, _ = made(oci, filtered(rule("SCMP_ACT_ERRNO", "no_such_call_at_all", *MKDIR)))
    assert status != 0


@pytest.mark.breach(drops("linux.seccomp"))
@pytest.mark.parametrize(
    "flag", ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"]
)
def test_flag(oci: OciTrial, flag: str) -> None:
    """Seccomp: "flags (array of strings, OPTIONAL) - list of flags to use with seccomp(2)"."""
    oci.needs_feature("linux.seccomp.supportedFlags", flag)
    status, _ = made(oci, filtered(rule("SCMP_ACT_ERRNO", *MKDIR), flags=[flag]))
    assert status != 0


@pytest.mark.breach(drops("linux.seccomp"))
def test_exec_is_filtered_too(oci: OciTrial) -> None:
    """runc, exec: a further process of the container has the container's filter."""
    box = oci.launch(filtered(rule("SCMP_ACT_ERRNO", *MKDIR)))
    done = oci.attempt("exec", box.id, "/bin/mkdir", "/tmp/x")
    assert done.status != 0
    assert status_field(oci.do("exec", box.id, "/bin/cat", "/proc/self/status").text, "Seccomp") == "2"


# Notification


@contextlib.contextmanager
def listener(folder: Path) -> Iterator[tuple[str, socket.socket]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        path = str(folder / "notify.sock")
        server.bind(path)
        server.listen(1)
        server.settimeout(5)
        yield path, server


@pytest.mark.breach(drops("linux.seccomp.listenerPath"))
def test_notify_sends_the_state_and_the_descriptor(oci: OciTrial) -> None:
    """Container process state: "The container runtime MUST send the container process state over the UNIX socket as regular payload
    serialized in JSON and file descriptors MUST be sent using SCM_RIGHTS"; "exactly one [...] per connection".
    """
    oci.needs_feature("linux.seccomp.actions", "SCMP_ACT_NOTIFY")
    box = oci.box(args=("/bin/sh", "-c", "echo never; mkdir /tmp/x; sleep 60"))
    with listener(box.path) as (path, server):
        box.apply(filtered(rule("SCMP_ACT_NOTIFY", "swapon"), listenerPath=path, listenerMetadata="meta"))
        oci.sail(box)
        try:
            connection, _ = server.accept()
        except TimeoutError:
            pytest.fail("no one came to the socket")
        with connection:
            connection.settimeout(5)
            payload, rights = b"", []
            while True:
                data, ancillary, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(16))
                for _, kind, value in ancillary:
                    assert kind == socket.SCM_RIGHTS
                    rights += list(array.array("i", value))
                if not data:
                    break
                payload += data
    for descriptor in rights:
        os.close(descriptor)
    state = json.loads(payload)
    assert len(rights) == len(state["fds"])
    assert "seccompFd" in state["fds"]
    assert state["pid"] == oci.pid(box)
    assert state["metadata"] == "meta"
    assert state["state"]["id"] == box.id
    assert state["state"]["bundle"] == str(box.path)


@pytest.mark.breach(drops("linux.seccomp"))
def test_notify_without_a_listener_is_an_error(oci: OciTrial) -> None:
    """Seccomp: "If sending to this socket fails, the runtime MUST generate an error"."""
    oci.needs_feature("linux.seccomp.actions", "SCMP_ACT_NOTIFY")
    box = oci.box(args=("/bin/true",))
    box.apply(filtered(rule("SCMP_ACT_NOTIFY", "swapon"), listenerPath=str(box.path / "nobody.sock")))
    if oci.try_create(box).status == 0:
        assert oci.refused("start", box.id)


CALLS = """
accept accept4 access alarm arch_prctl bind brk capget capset chdir chmod chown clock_getres clock_gettime clock_nanosleep clone
clone3 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait
epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fchdir fchmod
fchmodat fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fstat fstatfs fsync ftruncate futex futimesat getcpu getcwd
getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom
getresgid getresuid getrlimit get_robust_list getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr ioctl kill
lchown lgetxattr link linkat listen llistxattr lseek lstat madvise membarrier memfd_create mincore mmap mprotect mremap msync munmap
nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 poll ppoll prctl pread64 preadv prlimit64
pselect6 pwrite64 pwritev read readlink readlinkat readv recvfrom recvmmsg recvmsg rename renameat renameat2 restart_syscall rmdir
rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo
sched_getaffinity sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler sched_setaffinity sched_yield
seccomp select sendfile sendmmsg sendmsg sendto setfsgid setfsuid setgid setgroups setitimer setpgid setpriority setregid setresgid
setresuid setreuid setrlimit set_robust_list setsid setsockopt set_tid_address setuid shutdown sigaltstack socket socketpair splice
stat statfs statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timerfd_create
timerfd_gettime timerfd_settime timer_getoverrun timer_gettime timer_settime times tkill truncate ugetrlimit umask uname unlink
unlinkat utime utimensat utimes vfork vmsplice wait4 waitid waitpid write writev landlock_create_ruleset
"""
