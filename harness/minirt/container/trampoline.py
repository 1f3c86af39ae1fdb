"""The trampoline: a program of 300 bytes between ours and a container's, so that the container's cannot get hold of ours.

Whoever says that ``/proc/self/exe`` is the program to execute (or its interpreter, by ``#!``) means the file that the calling
process was started from. Were that the runtime's, it would be there to be overwritten by the container a moment later
(CVE-2019-5736), and no look at what is to be executed helps: it may be another file by the time the kernel looks. So the last
call is made by a process that was started from the trampoline, which is a sealed file in memory and nobody's loss.

It is called with a word that tells a descriptor and the number of the program's arguments. Its own environment is the
program's path, its arguments, a word to be put away, and the program's environment: so nobody who looks at the command lines
of processes takes what waits for what runs. It has the descriptor closed by a successful execve(2), else writes the error
there and exits with 127. With one more byte in the word the descriptor is the listener of a gate: the trampoline waits until
somebody connects and says something, and the connection is what it writes an error to. So a container that is created and
not started costs a page or two, and starts at once.

It needs fcntl(2), execve(2), write(2) and, to be executed itself, execveat(2), and to wait also accept4(2), read(2) and
close(2): `passes` says whether a seccomp profile lets that through.
"""

from __future__ import annotations

import fcntl
from _struct import pack  # type: ignore[import-not-found,unused-ignore]

from harness.linux import lean as os
from harness.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from harness.minirt.container.plan import Plan

_CALLS = ("execveat", "execve", "fcntl", "write")
CALLS_TO_WAIT = ("accept4", "close", "read", *_CALLS)
_LETTING = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG")
_MFD_EXEC = 0x10
_SEALS = 0x000F
"""F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE"""
_CLONE_NEWPID = 0x20000000

_X86_64 = """
48833c2402    cmp   qword [rsp], 2          (as somebody's interpreter it is called with other words: it ends)
0f85bd000000  jne   exit
488b7c2410    mov   rdi, [rsp+16]           argv[1]: byte 0 + 255 * byte 1 - 256 is the descriptor,
0fb607        movzx eax, byte [rdi]
0fb65f01      movzx ebx, byte [rdi+1]
69dbff000000  imul  ebx, ebx, 255
8d9c0300ffffff lea  ebx, [rbx+rax-256]
0fb64702      movzx eax, byte [rdi+2]       bytes 2 and 3 the number of arguments, likewise
0fb66f03      movzx ebp, byte [rdi+3]
69edff000000  imul  ebp, ebp, 255
8dac0500ffffff lea  ebp, [rbp+rax-256]
440fb66704    movzx r12d, byte [rdi+4]      byte 4 whether it is a listener
89df          mov   edi, ebx                fcntl(descriptor, F_SETFD, FD_CLOEXEC)
be02000000    mov   esi, 2
ba01000000    mov   edx, 1
b848000000    mov   eax, 72
0f05          syscall
85c0          test  eax, eax
7873          js    exit
48c744ec2800000000 mov qword [rsp+rbp*8+40], 0  the end of the arguments
4585e4        test  r12d, r12d
743d          jz    go
89df          mov   edi, ebx                wait: accept4(listener, NULL, NULL, SOCK_CLOEXEC)
31f6          xor   esi, esi
31d2          xor   edx, edx
41ba00000800  mov   r10d, 0x80000
b820010000    mov   eax, 288
0f05          syscall
85c0          test  eax, eax
784e          js    exit
4189c4        mov   r12d, eax               read(connection, stack - 64, 16)
89c7          mov   edi, eax
488d7424c0    lea   rsi, [rsp-64]
ba10000000    mov   edx, 16
31c0          xor   eax, eax
0f05          syscall
85c0          test  eax, eax
7f0c          jg    start
4489e7        mov   edi, r12d               close(connection): whoever it was has hung up
b803000000    mov   eax, 3
0f05          syscall
ebc6          jmp   wait
4489e3        mov   ebx, r12d               start: errors go to the connection
488b7c2420    mov   rdi, [rsp+32]           go: execve(path, arguments, environment)
488d742428    lea   rsi, [rsp+40]
488d54ec30    lea   rdx, [rsp+rbp*8+48]
b83b000000    mov   eax, 59
0f05          syscall
50            push  rax                     write(descriptor, &error, 4)
89df          mov   edi, ebx
4889e6        mov   rsi, rsp
ba04000000    mov   edx, 4
b801000000    mov   eax, 1
0f05          syscall
bf7f000000    mov   edi, 127                exit: exit_group(127)
b8e7000000    mov   eax, 231
0f05          syscall
"""
_AARCH64 = """
e00340f9      ldr   x0, [sp]
1f0800f1      cmp   x0, #2
61060054      b.ne  exit
e00b40f9      ldr   x0, [sp, #16]           argv[1]
e31f8052      mov   w3, #255
01004039      ldrb  w1, [x0]
02044039      ldrb  w2, [x0, #1]
5304031b      madd  w19, w2, w3, w1
73020451      sub   w19, w19, #256
01084039      ldrb  w1, [x0, #2]
020c4039      ldrb  w2, [x0, #3]
5504031b      madd  w21, w2, w3, w1
b5020451      sub   w21, w21, #256
14104039      ldrb  w20, [x0, #4]
e003132a      mov   w0, w19                 fcntl
410080d2      mov   x1, #2
220080d2      mov   x2, #1
280380d2      mov   x8, #25
010000d4      svc   #0
4004f837      tbnz  w0, #31, exit
f56f358b      add   x21, sp, x21, lsl #3    the end of the arguments
bf1600f9      str   xzr, [x21, #40]
94020034      cbz   w20, go
e003132a      mov   w0, w19                 wait: accept4
010080d2      mov   x1, #0
020080d2      mov   x2, #0
0301a0d2      mov   x3, #0x80000
481e80d2      mov   x8, #242
010000d4      svc   #0
0003f837      tbnz  w0, #31, exit
f403002a      mov   w20, w0                 read
e10301d1      sub   x1, sp, #64
020280d2      mov   x2, #16
e80780d2      mov   x8, #63
010000d4      svc   #0
1f000071      cmp   w0, #0
ac000054      b.gt  start
e003142a      mov   w0, w20                 close
280780d2      mov   x8, #57
010000d4      svc   #0
efffff17      b     wait
f303142a      mov   w19, w20                start:
e01340f9      ldr   x0, [sp, #32]           go: execve
e1a30091      add   x1, sp, #40
a2c20091      add   x2, x21, #48
a81b80d2      mov   x8, #221
010000d4      svc   #0
e00f1ff8      str   x0, [sp, #-16]!         write
e003132a      mov   w0, w19
e1030091      mov   x1, sp
820080d2      mov   x2, #4
080880d2      mov   x8, #64
010000d4      svc   #0
e00f80d2      mov   x0, #127                exit: exit_group
c80b80d2      mov   x8, #94
010000d4      svc   #0
"""
_MACHINES = {"x86_64": (62, _X86_64), "aarch64": (183, _AARCH64)}
"""By uname(2): the number of the architecture in an ELF header, and what is executed, in hexadecimal, with its meaning."""


def image(machine: str) -> bytes:
    """The trampoline as an ELF file (elf(5)); raises `KeyError` for a machine that it has not been written for."""
    number, listing = _MACHINES[machine]
    code = b"".join([bytes.fromhex(line.split(" ", 1)[0]) for line in listing.strip().splitlines()])
    headers, base = 64 + 2 * 56, 0x400000
    size = headers + len(code)
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    head = ident + pack("<HHIQQQIHHHHHH", 2, number, 1, base + headers, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    load = pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    # Without a word on its stack the kernel would have some machines' programs execute what they only read.
    stack = pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)
    return head + load + stack + code


def open_trampoline() -> int:
    """A close-on-exec descriptor of the trampoline. Raises `OSError` where none can be had: then `sealing` is the way."""
    machine = os.uname().machine
    if machine not in _MACHINES:
        raise OSError(38, "there is no trampoline for this architecture", machine)
    try:
        fd = os.memfd_create("minirt", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | _MFD_EXEC)
    except OSError as error:
        if error.errno != 22:  # before Linux 6.3 there was no such flag, and every one could be executed
            raise
        fd = os.memfd_create("minirt", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, image(machine))
        fcntl.fcntl(fd, 1033, _SEALS)  # F_ADD_SEALS
    except OSError:
        os.close(fd)
        raise
    return fd


def suits(plan: Plan, profile: dict[str, Any] | None) -> bool:
    """Whether a trampoline is all that the runtime needs for its protection, and the plan lets it work.

    In a pid namespace with others, these could get hold of us before our last call (with CAP_SYS_PTRACE). The label of a
    security module is given to whatever is executed next, which is to be the program.
    """
    if not plan.clone_flags & _CLONE_NEWPID or plan.process is None:
        return False
    return not plan.process.apparmor and not plan.process.selinux and (profile is None or passes(profile))


def waits(plan: Plan, profile: dict[str, Any] | None) -> bool:
    """Whether a trampoline that `suits` may also wait at the gate: whether nothing is to be done after it but the exec."""
    if plan.hooks.get("startContainer") or (plan.seccomp is not None and plan.seccomp.listener is not None):
        return False
    return profile is None or passes(profile, CALLS_TO_WAIT)


def passes(profile: dict[str, Any], calls: Sequence[str] = _CALLS) -> bool:
    """Whether a linux.seccomp surely lets the trampoline's calls through, whatever their arguments are."""
    passing = dict.fromkeys(calls, profile.get("defaultAction") in _LETTING)
    for rule in profile.get("syscalls") or ():
        lets = rule.get("action") in _LETTING
        for name in calls:
            if name in (rule.get("names") or ()) and (not lets or not rule.get("args")):
                passing[name] = lets
    return all(passing.values())


def jump(
    trampoline: int, report: int, program: str, args: Sequence[str], env: Sequence[str], wait: bool = False
) -> None:
    """Execute the program by way of the trampoline; what the program's own exec fails of is written to `report`.

    With `wait` that is a listener: the program is executed once somebody has said so, who is then told of the error.
    Does not return. Raises `OSError` for what the trampoline's exec fails of, and `ValueError`.
    """
    fcntl.fcntl(report, fcntl.F_SETFD, 0)
    syscalls.fexecve(trampoline, ["minirt", call_of(report, len(args), wait)], [program, *args, "", *env])


def call_of(report: int, count: int, wait: bool) -> bytes:
    """The word that a trampoline is called with. Raises `OSError` for more arguments than it can tell of."""
    if count >= 255 * 255:
        raise OSError(7, os.strerror(7))
    digits = (*divmod(report, 255)[::-1], *divmod(count, 255)[::-1])
    return bytes([digit + 1 for digit in digits]) + b"w" * wait
