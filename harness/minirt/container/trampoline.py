"""The trampoline: a program of some hundred bytes between ours and a container's, so that the container's cannot get hold of ours.

Whoever says that ``/proc/self/exe`` is the program to execute (or its interpreter, by ``#!``) means the file that the calling
process was started from. Were that the runtime's, it would be there to be overwritten by the container a moment later
(CVE-2019-5736), and no look at what is to be executed helps: it may be another file by the time the kernel looks. So the last
call is made by a process that was started from the trampoline, which is a sealed file in memory and nobody's loss.

A trampoline is made for one exec: what is to be executed, with its arguments and environment, is part of it, so that nobody
who looks at the command lines and environments of processes takes what waits for what runs. It knows a descriptor, which it has
closed by a successful execve(2); else it writes the error there and exits with 127. That descriptor may be the listener of a
gate: then it waits until somebody connects and says something, and writes an error to the connection. So a container that is
created and not started costs a page or two, and starts at once.

It needs fcntl(2), execve(2), write(2) and, to be executed itself, execveat(2), and to wait also accept4(2), read(2) and
close(2): `passes` says whether a seccomp profile lets that through.
"""

from __future__ import annotations

import fcntl
from _struct import pack  # type: ignore[import-not-found,unused-ignore]

from harness.linux import lean as os
from harness.minirt.container.record import Record

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
_MACHINE = os.uname().machine
"""asked for here, since a child with another personality is told something else"""

_X86_64 = """
8b1d9a000000  mov   ebx, [pool]             fcntl(descriptor, F_SETFD, FD_CLOEXEC)
89df          mov   edi, ebx
be02000000    mov   esi, 2
ba01000000    mov   edx, 1
b848000000    mov   eax, 72
0f05          syscall
85c0          test  eax, eax                (executed by anybody else it has no such descriptor, and ends)
7871          js    exit
833d8000000000 cmp  dword [pool+4], 0       whether it is a listener
743a          je    go
89df          mov   edi, ebx                wait: accept4(listener, NULL, NULL, SOCK_CLOEXEC)
31f6          xor   esi, esi
31d2          xor   edx, edx
41ba00000800  mov   r10d, 0x80000
b820010000    mov   eax, 288
0f05          syscall
85c0          test  eax, eax
7851          js    exit
89c5          mov   ebp, eax                read(connection, stack - 64, 16)
89c7          mov   edi, eax
488d7424c0    lea   rsi, [rsp-64]
ba10000000    mov   edx, 16
31c0          xor   eax, eax
0f05          syscall
85c0          test  eax, eax
7f0b          jg    start
89ef          mov   edi, ebp                close(connection): whoever it was has hung up
b803000000    mov   eax, 3
0f05          syscall
ebc8          jmp   wait
89eb          mov   ebx, ebp                start: errors go to the connection
488b3d41000000 mov  rdi, [pool+8]           go: execve(path, arguments, environment)
488b3542000000 mov  rsi, [pool+16]
488b1543000000 mov  rdx, [pool+24]
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
660f1f440000  nop
"""
_AARCH64 = """
53050018      ldr   w19, pool               fcntl
e003132a      mov   w0, w19
410080d2      mov   x1, #2
220080d2      mov   x2, #1
280380d2      mov   x8, #25
010000d4      svc   #0
2004f837      tbnz  w0, #31, exit
94040018      ldr   w20, pool+4
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
00020058      ldr   x0, pool+8              go: execve
21020058      ldr   x1, pool+16
42020058      ldr   x2, pool+24
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
"""By uname(2): the number of the architecture in an ELF header, and what is executed, in hexadecimal, with its meaning.

Behind it stands the pool: descriptor and whether it is a listener, of 4 bytes each, and the addresses of the path, of the table of
arguments and of that of the environment, of 8."""


class Jump(Record):
    """What a trampoline is to execute. With `wait` it does so once somebody has said so at the gate."""

    program: str
    args: tuple[str, ...]
    env: tuple[str, ...]
    wait: bool


def image(machine: str, report: int, jump: Jump) -> bytes:
    """The trampoline as an ELF file (elf(5)) that knows the descriptor `report`, or the listener of that number.

    Raises `KeyError` for a machine that it has not been written for, `ValueError` for words with a NUL in them.
    """
    number, listing = _MACHINES[machine]
    code = b"".join([bytes.fromhex(line.split(" ", 1)[0]) for line in listing.strip().splitlines()])
    headers, base = 64 + 2 * 56, 0x400000
    # Behind the code: the pool, two tables of addresses that each end with a zero, and the words.
    words = [os.fsencode(word) for word in (jump.program, *jump.args, *jump.env)]
    if any(b"\0" in word for word in words):
        raise ValueError("embedded null byte")
    tables = base + headers + len(code) + 32
    place = tables + 8 * (len(words) + 1)
    addresses = []
    for word in words:
        addresses.append(place)
        place += len(word) + 1
    path, *rest = addresses
    args, env = rest[: len(jump.args)], rest[len(jump.args) :]
    pool = pack("<iIQQQ", report, jump.wait, path, tables, tables + 8 * (len(args) + 1))
    content = code + pool + pack(f"<{len(words) + 1}Q", *args, 0, *env, 0) + b"\0".join([*words, b""])
    size = headers + len(content)
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    head = ident + pack("<HHIQQQIHHHHHH", 2, number, 1, base + headers, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    load = pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    # Without a word on its stack the kernel would have some machines' programs execute what they only read.
    stack = pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)
    return head + load + stack + content


def can_be_had() -> bool:
    """Whether there is a trampoline for this machine, and files in memory may be executed; else `sealing` is the way."""
    if _MACHINE not in _MACHINES:
        return False
    try:
        os.close(_make_file())
    except OSError:
        return False
    return True


def open_trampoline(report: int, jump: Jump) -> int:
    """A close-on-exec descriptor of a trampoline. Raises `OSError` and `ValueError`."""
    fd = _make_file()
    try:
        content = image(_MACHINE, report, jump)
        while content:
            content = content[os.write(fd, content) :]
        fcntl.fcntl(fd, 1033, _SEALS)  # F_ADD_SEALS
    except BaseException:
        os.close(fd)
        raise
    return fd


def _make_file() -> int:
    try:
        return os.memfd_create("minirt", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | _MFD_EXEC)
    except OSError as error:
        if error.errno != 22:  # before Linux 6.3 there was no such flag, and every one could be executed
            raise
    return os.memfd_create("minirt", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def execute(trampoline: int, report: int) -> None:
    """Execute a trampoline, which keeps `report`. Does not return. Raises `OSError`."""
    fcntl.fcntl(report, fcntl.F_SETFD, 0)
    os.execve(trampoline, ["minirt"], {})


def suits(plan: Plan, profile: dict[str, Any] | None) -> bool:
    """Whether a trampoline is all that the runtime needs for its protection, and the plan lets it work.

    In a pid namespace with others, these could get hold of us before our last call (with CAP_SYS_PTRACE). The label of a
    security module is given to whatever is executed next, which is to be the program. A filter that asks a listener is
    loaded before the trampoline can be made.
    """
    if not plan.clone_flags & _CLONE_NEWPID or plan.process is None:
        return False
    if plan.seccomp is not None and plan.seccomp.listener is not None:
        return False
    return not plan.process.apparmor and not plan.process.selinux and (profile is None or passes(profile))


def waits(plan: Plan, profile: dict[str, Any] | None) -> bool:
    """Whether a trampoline that `suits` may also wait at the gate: whether nothing is to be done after it but the exec."""
    return not plan.hooks.get("startContainer") and (profile is None or passes(profile, CALLS_TO_WAIT))


def passes(profile: dict[str, Any], calls: Sequence[str] = _CALLS) -> bool:
    """Whether a linux.seccomp surely lets the trampoline's calls through, whatever their arguments are."""
    passing = dict.fromkeys(calls, profile.get("defaultAction") in _LETTING)
    for rule in profile.get("syscalls") or ():
        lets = rule.get("action") in _LETTING
        for name in calls:
            if name in (rule.get("names") or ()) and (not lets or not rule.get("args")):
                passing[name] = lets
    return all(passing.values())
