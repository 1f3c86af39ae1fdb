"""System calls that `os` does not have, over ctypes. Each raises `OSError` with the errno and the path it was about.

Nothing here keeps state or allocates threads, so all of it may be called between a fork and an exec. `clone3` goes
through `PyDLL`, which does not let go of the interpreter lock: the child must come back holding it.

Numbers of system calls from 424 on are the same on every architecture; of the older ones that the C library does
not wrap stand beside them.
"""

from __future__ import annotations

from harness.linux import foreign as ctypes
from harness.linux import lean as os

CLONE_NEWTIME = 0x00000080
CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_CLEAR_SIGHAND = 0x100000000
CLONE_INTO_CGROUP = 0x200000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_MANDLOCK = 64
MS_DIRSYNC = 128
MS_NOSYMFOLLOW = 256
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_SILENT = 32768
MS_POSIXACL = 1 << 16
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_I_VERSION = 1 << 23
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_GET_KEEPCAPS = 7
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_GET_CHILD_SUBREAPER = 37
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_IS_SET = 1
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_LOWER = 3
PR_CAP_AMBIENT_CLEAR_ALL = 4

SECCOMP_MODE_FILTER = 2
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_TSYNC = 1
SECCOMP_FILTER_FLAG_LOG = 2
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4
SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 32

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_FDCWD = -100
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40

FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6

MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_RELATIME = 0x00
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

CLOSE_RANGE_CLOEXEC = 4

SIGCHLD = 17

IN_MODIFY = 2

_BPF_CGROUP_DEVICE = 6

_NS_GET_NSTYPE = 0xB703
PROC_SUPER_MAGIC = 0x9FA0
SYSFS_MAGIC = 0x62656572
DEVPTS_SUPER_MAGIC = 0x1CD1

_NR_SECCOMP, _NR_PIVOT_ROOT, _NR_KEYCTL, _NR_BPF, _NR_GETCWD = {
    "x86_64": (317, 155, 250, 321, 79),
    "aarch64": (277, 41, 219, 280, 17),
    "riscv64": (277, 41, 219, 280, 17),
    "ppc64le": (358, 203, 271, 361, 182),
    "s390x": (348, 217, 280, 351, 183),
}.get(os.uname().machine, (277, 41, 219, 280, 17))
_NR_PIDFD_SEND_SIGNAL = 424
_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_FSOPEN = 430
_NR_FSCONFIG = 431
_NR_FSMOUNT = 432
_NR_PIDFD_OPEN = 434
_NR_CLONE3 = 435
_NR_CLOSE_RANGE = 436
_NR_OPENAT2 = 437
_NR_PIDFD_GETFD = 438
_NR_MOUNT_SETATTR = 442

_libc = ctypes.CDLL(None, use_errno=True)
_locked_libc = ctypes.PyDLL(None, use_errno=True)
_long = ctypes.c_long


class _CloneArgs(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    )


def _failure(path: str | bytes | None = None) -> OSError:
    number = ctypes.get_errno()
    if path is None:
        return OSError(number, os.strerror(number))
    return OSError(number, os.strerror(number), os.fsdecode(path))


def _call(number: int, *arguments: object, path: str | bytes | None = None) -> int:
    result: int = _libc.syscall(_long(number), *arguments)
    if result < 0:
        raise _failure(path)
    return result


def _text(value: str | bytes | None) -> bytes | None:
    return None if value is None else os.fsencode(value)


def clone3(flags: int, *, cgroup_fd: int = -1, exit_signal: int = SIGCHLD) -> tuple[int, int]:
    """Fork with new namespaces: ``(pid, pidfd)`` in the parent (pidfd is close-on-exec), ``(0, -1)`` in the child.

    `cgroup_fd`, if any, is an open directory of the v2 tree into which the child is born. The caller should have one
    thread; Python's own at-fork hooks do not run, and the child must end in exec or `os._exit`.
    """
    pidfd = ctypes.c_int(-1)
    asked = _CloneArgs(
        flags=flags | CLONE_PIDFD | (CLONE_INTO_CGROUP if cgroup_fd >= 0 else 0),
        pidfd=ctypes.addressof(pidfd),
        exit_signal=exit_signal,
        cgroup=max(cgroup_fd, 0),
    )
    pid: int = _locked_libc.syscall(_long(_NR_CLONE3), ctypes.byref(asked), ctypes.c_size_t(ctypes.sizeof(asked)))
    if pid < 0:
        raise _failure()
    return (pid, pidfd.value) if pid else (0, -1)


def unshare(flags: int) -> None:
    """Leave namespaces for new ones (unshare(2))."""
    if _libc.unshare(ctypes.c_int(flags)) < 0:
        raise _failure()


def setns(fd: int, flags: int = 0) -> None:
    """Enter the namespace behind `fd`, or, with a pidfd, those namespaces of its process that `flags` name."""
    if _libc.setns(ctypes.c_int(fd), ctypes.c_int(flags)) < 0:
        raise _failure()


def namespace_type(fd: int) -> int:
    """The CLONE_* flag of the kind of namespace behind a descriptor (ioctl_ns(2), NS_GET_NSTYPE)."""
    kind: int = _libc.ioctl(ctypes.c_int(fd), ctypes.c_ulong(_NS_GET_NSTYPE))
    if kind < 0:
        raise _failure()
    return kind


def syncfs(fd: int) -> None:
    """Have the file system that `fd` is on write all that it still holds back to its disk."""
    if _libc.syncfs(ctypes.c_int(fd)) < 0:
        raise _failure()


def mount(
    source: str | bytes | None,
    target: str | bytes,
    fstype: str | bytes | None = None,
    flags: int = 0,
    data: str | bytes | None = None,
) -> None:
    """mount(2)."""
    if _libc.mount(_text(source), _text(target), _text(fstype), ctypes.c_ulong(flags), _text(data)) < 0:
        raise _failure(target)


def umount2(target: str | bytes, flags: int = 0) -> None:
    """umount2(2)."""
    if _libc.umount2(_text(target), ctypes.c_int(flags)) < 0:
        raise _failure(target)


def pivot_root(new: str | bytes, old: str | bytes) -> None:
    """pivot_root(2)."""
    _call(_NR_PIVOT_ROOT, _text(new), _text(old), path=new)


def sethostname(name: str) -> None:
    """Set the name of the UTS namespace."""
    text = os.fsencode(name)
    if _libc.sethostname(text, ctypes.c_size_t(len(text))) < 0:
        raise _failure()


def setdomainname(name: str) -> None:
    """Set the NIS domain name of the UTS namespace."""
    text = os.fsencode(name)
    if _libc.setdomainname(text, ctypes.c_size_t(len(text))) < 0:
        raise _failure()


def prctl(option: int, a2: int = 0, a3: int = 0, a4: int = 0, a5: int = 0) -> int:
    """prctl(2); pointers are passed as addresses."""
    words = [ctypes.c_ulong(value) for value in (a2, a3, a4, a5)]
    result: int = _libc.prctl(ctypes.c_int(option), *words)
    if result < 0:
        raise _failure()
    return result


def set_name(name: bytes) -> None:
    """Name the calling thread (comm); `name` ends with a NUL, and has up to 16 bytes with it."""
    buffer = ctypes.create_string_buffer(name, 16)
    prctl(PR_SET_NAME, ctypes.addressof(buffer))


def pidfd_open(pid: int) -> int:
    """A close-on-exec descriptor of a process; raises `ProcessLookupError` where there is none."""
    return _call(_NR_PIDFD_OPEN, _long(pid), _long(0))


def pidfd_send_signal(fd: int, signal: int) -> None:
    """Send a signal to the process behind a pidfd; raises `ProcessLookupError` when it has been reaped."""
    _call(_NR_PIDFD_SEND_SIGNAL, _long(fd), _long(signal), None, _long(0))


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A close-on-exec copy of another process's descriptor (pidfd_getfd(2)); needs the right to trace it."""
    return _call(_NR_PIDFD_GETFD, _long(pidfd), _long(fd), _long(0))


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    """Close (or with `CLOSE_RANGE_CLOEXEC`, mark) every descriptor from `first` to `last`, both included."""
    _call(_NR_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(last), ctypes.c_uint(flags))


def filesystem_type(fd: int) -> int:
    """The magic number of the file system behind a descriptor, which may be an O_PATH one (fstatfs(2))."""
    status = (_long * 32)()  # struct statfs is smaller than that everywhere, and begins with the type
    if _libc.fstatfs(ctypes.c_int(fd), ctypes.byref(status)) < 0:
        raise _failure()
    return status[0] & 0xFFFFFFFF


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(dirfd: int, path: str | bytes, flags: int, resolve: int = 0, mode: int = 0) -> int:
    """openat2(2), always close-on-exec. `resolve` is made of ``RESOLVE_*``; EAGAIN (a racing rename) is tried again."""
    how = _OpenHow(flags=flags | os.O_CLOEXEC, mode=mode, resolve=resolve)
    while True:
        fd: int = _libc.syscall(
            _long(_NR_OPENAT2), _long(dirfd), _text(path), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))
        )
        if fd >= 0:
            return fd
        if ctypes.get_errno() != 11:  # EAGAIN
            raise _failure(path)


def open_tree(dirfd: int, path: str | bytes, flags: int) -> int:
    """open_tree(2): with `OPEN_TREE_CLONE` a detached copy of a mount."""
    return _call(_NR_OPEN_TREE, _long(dirfd), _text(path), ctypes.c_uint(flags | OPEN_TREE_CLOEXEC), path=path)


def move_mount(from_fd: int, from_path: str | bytes, to_fd: int, to_path: str | bytes, flags: int) -> None:
    """move_mount(2)."""
    where = (_long(from_fd), _text(from_path), _long(to_fd), _text(to_path))
    _call(_NR_MOVE_MOUNT, *where, ctypes.c_uint(flags), path=to_path)


def fsopen(fstype: str) -> int:
    """fsopen(2): a descriptor of a filesystem that is yet to be made."""
    return _call(_NR_FSOPEN, _text(fstype), ctypes.c_uint(FSOPEN_CLOEXEC), path=fstype)


def fsconfig(fd: int, command: int, key: str | None = None, value: str | None = None) -> None:
    """fsconfig(2): set one option (``FSCONFIG_SET_*``), or make the filesystem (`FSCONFIG_CMD_CREATE`)."""
    _call(_NR_FSCONFIG, _long(fd), ctypes.c_uint(command), _text(key), _text(value), _long(0), path=key)


def fsmount(fd: int, attributes: int = 0) -> int:
    """fsmount(2): a detached mount of what `fsconfig` has made, with attributes of ``MOUNT_ATTR_*``."""
    return _call(_NR_FSMOUNT, _long(fd), ctypes.c_uint(FSMOUNT_CLOEXEC), ctypes.c_uint(attributes))


def getcwd() -> str:
    """The working directory as the kernel tells it; it begins with ``(unreachable)`` where it is outside of the root.

    The C library's function may find its own way up to something that looks like the root, and hide just that.
    """
    text = ctypes.create_string_buffer(4096)
    _call(_NR_GETCWD, text, ctypes.c_size_t(len(text)))
    return os.fsdecode(text.value)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount_setattr(
    dirfd: int,
    path: str | bytes,
    flags: int,
    *,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
) -> None:
    """mount_setattr(2): `flags` of ``AT_*`` (`AT_RECURSIVE` reaches submounts), attributes of ``MOUNT_ATTR_*``."""
    attributes = _MountAttr(attr_set=attr_set, attr_clr=attr_clr, propagation=propagation, userns_fd=userns_fd)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    _call(
        _NR_MOUNT_SETATTR,
        _long(dirfd),
        _text(path),
        ctypes.c_uint(flags),
        ctypes.byref(attributes),
        size,
        path=path,
    )


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


_CapData = ctypes.c_uint32 * 6
_CAP_VERSION_3 = 0x20080522


def capget(pid: int = 0) -> tuple[int, int, int]:
    """Bit masks ``(effective, permitted, inheritable)`` of a thread (0: the caller)."""
    header, data = _CapHeader(_CAP_VERSION_3, pid), _CapData()
    if _libc.capget(ctypes.byref(header), ctypes.byref(data)) < 0:
        raise _failure()
    return data[0] | data[3] << 32, data[1] | data[4] << 32, data[2] | data[5] << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the calling thread's three masks."""
    low = 0xFFFFFFFF
    data = _CapData(
        effective & low, permitted & low, inheritable & low, effective >> 32, permitted >> 32, inheritable >> 32
    )
    if _libc.capset(ctypes.byref(_CapHeader(_CAP_VERSION_3, 0)), ctypes.byref(data)) < 0:
        raise _failure()


class _SockFprog(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def seccomp_filter(program: bytes, flags: int = 0) -> int:
    """Load a BPF program (8 bytes an instruction) as the thread's seccomp filter.

    The result is the listener's descriptor with `SECCOMP_FILTER_FLAG_NEW_LISTENER`, else 0. Needs CAP_SYS_ADMIN or
    no_new_privs.
    """
    packed = _SockFprog(len(program) // 8, program)
    return _call(_NR_SECCOMP, _long(SECCOMP_SET_MODE_FILTER), _long(flags), ctypes.byref(packed))


class _ProgramLoad(ctypes.Structure):
    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("rest", ctypes.c_uint64 * 13),
    )


class _ProgramAttach(ctypes.Structure):
    _fields_ = (
        ("target_fd", ctypes.c_uint32),
        ("attach_bpf_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("replace_bpf_fd", ctypes.c_uint32),
    )


class _ProgramQuery(ctypes.Structure):
    _fields_ = (
        ("target_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("prog_ids", ctypes.c_uint64),
        ("prog_cnt", ctypes.c_uint32),
    )


def load_device_program(code: bytes) -> int:
    """Load a BPF program of type cgroup-device (8 bytes an instruction); its close-on-exec descriptor."""
    body = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"Apache")
    asked = _ProgramLoad(15, len(code) // 8, ctypes.addressof(body), ctypes.addressof(licence))
    return _call(_NR_BPF, _long(5), ctypes.byref(asked), ctypes.c_size_t(ctypes.sizeof(asked)))


def attach_device_program(cgroup_fd: int, program_fd: int, *, instead_of: int = -1) -> None:
    """Have the kernel ask a program about every device access in a v2 cgroup, beside those that it asks already.

    `instead_of`: the descriptor of one of these, whose place it takes at once.
    """
    flags = 2 if instead_of < 0 else 2 | 4  # BPF_F_ALLOW_MULTI, BPF_F_REPLACE
    _bpf(8, _ProgramAttach(cgroup_fd, program_fd, _BPF_CGROUP_DEVICE, flags, max(instead_of, 0)))


def detach_device_program(cgroup_fd: int, program_fd: int) -> None:
    """Have the kernel ask a program no more."""
    _bpf(9, _ProgramAttach(cgroup_fd, program_fd, _BPF_CGROUP_DEVICE))


def attached_device_programs(cgroup_fd: int) -> list[int]:
    """The numbers (not descriptors) of the programs that the kernel asks about a v2 cgroup itself."""
    numbers = (ctypes.c_uint32 * 64)()
    asked = _ProgramQuery(cgroup_fd, _BPF_CGROUP_DEVICE, 0, 0, ctypes.addressof(numbers), len(numbers))
    _bpf(16, asked)
    return list(numbers[: asked.prog_cnt])


def open_bpf_program(number: int) -> int:
    """A close-on-exec descriptor of a program by its number; needs CAP_SYS_ADMIN."""
    return _bpf(13, (ctypes.c_uint32 * 3)(number, 0, 0))


def _bpf(command: int, asked: ctypes.Structure | ctypes.Array[ctypes.c_uint32]) -> int:
    return _call(_NR_BPF, _long(command), ctypes.byref(asked), ctypes.c_size_t(ctypes.sizeof(asked)))


def inotify_init() -> int:
    """A close-on-exec descriptor from which events of watched files are read."""
    fd = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise _failure()
    return int(fd)


def inotify_add_watch(fd: int, path: str, events: int) -> int:
    """Watch a file for IN_* events; the number by which these name it."""
    watch = _libc.inotify_add_watch(fd, os.fsencode(path), ctypes.c_uint32(events))
    if watch < 0:
        raise _failure(path)
    return int(watch)


def join_session_keyring(name: str) -> int:
    """Give the calling process a new session keyring (keyctl(2), KEYCTL_JOIN_SESSION_KEYRING); its serial number."""
    return _call(_NR_KEYCTL, _long(1), _text(name))


def personality(persona: int) -> None:
    """Set the execution domain (personality(2))."""
    if _libc.personality(ctypes.c_ulong(persona)) < 0:
        raise _failure()


_RLIM_INFINITY = (1 << 64) - 1


def setrlimit(resource: int, soft: int, hard: int) -> None:
    """setrlimit(2) by number; 2**64 - 1 is unlimited."""
    limits = (ctypes.c_uint64 * 2)(min(soft, _RLIM_INFINITY), min(hard, _RLIM_INFINITY))
    if _libc.prlimit64(ctypes.c_int(0), ctypes.c_int(resource), ctypes.byref(limits), None) < 0:
        raise _failure()


def reset_signals() -> None:
    """Undo what the interpreter did to signals (SIGPIPE and SIGXFSZ ignored), and unblock all: just before an exec.

    Handlers need no care, exec resets them; what is ignored would stay so.
    """
    default = ctypes.c_void_p(0)
    for number in range(1, 65):
        if number not in (9, 19, 32, 33):
            _libc.signal(ctypes.c_int(number), default)
    empty = ctypes.create_string_buffer(128)
    _libc.sigprocmask(ctypes.c_int(2), ctypes.byref(empty), None)
