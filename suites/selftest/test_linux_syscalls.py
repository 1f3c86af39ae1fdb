"""System calls over ctypes: results, errors, and a child in namespaces of its own."""

from __future__ import annotations

import errno
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.linux import capabilities, namespaces, syscalls

_ALONE = """
import pathlib, runpy, sys
test = runpy.run_path(sys.argv[1])[sys.argv[2]].__wrapped__
test(*map(pathlib.Path, sys.argv[3:]))
"""


def alone(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in an interpreter of its own: a bare clone in one with threads takes over the locks that they hold."""

    @functools.wraps(test)
    def run(**folders: Path) -> None:
        words = [sys.executable, "-c", _ALONE, __file__, test.__name__, *map(str, folders.values())]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr

    return run


def _in_child(flags: int, act) -> str:  # type: ignore[no-untyped-def]
    """What `act` returns in a clone3 child."""
    read, write = os.pipe()
    pid, pidfd = syscalls.clone3(flags)
    if pid == 0:
        try:
            os.write(write, act().encode())
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        return os.read(read, 4096).decode()
    finally:
        os.close(read)
        os.close(pidfd)


@alone
def test_clone3_into_namespaces() -> None:
    flags = namespaces.flags_of(("pid", "uts"))

    def act() -> str:
        syscalls.sethostname("elsewhere")
        return f"{os.getpid()} {os.uname().nodename}"

    assert _in_child(flags, act) == "1 elsewhere"
    assert os.uname().nodename != "elsewhere"


@alone
def test_mounts_stay_in_their_namespace(tmp_path: Path) -> None:
    def act() -> str:
        syscalls.mount(None, "/", None, syscalls.MS_PRIVATE | syscalls.MS_REC)
        syscalls.mount("tmpfs", str(tmp_path), "tmpfs", syscalls.MS_NOSUID, "size=4k")
        (tmp_path / "inside").touch()
        syscalls.umount2(str(tmp_path), syscalls.MNT_DETACH)
        return ",".join(path.name for path in tmp_path.iterdir())

    (tmp_path / "outside").touch()
    assert _in_child(syscalls.CLONE_NEWNS, act) == "outside"


def test_errors_carry_errno_and_path() -> None:
    with pytest.raises(OSError) as caught:
        syscalls.mount("none", "/no/such/place", "tmpfs")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "/no/such/place")
    with pytest.raises(ProcessLookupError):
        syscalls.pidfd_open(2**22)  # one above the highest pid there can be


def test_openat2_stays_in_the_root(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("ours")
    (tmp_path / "link").symlink_to("/etc/passwd")
    root = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        for path in ("link", "../../etc/passwd", "etc/../../etc/passwd"):
            fd = syscalls.openat2(root, path, os.O_RDONLY, syscalls.RESOLVE_IN_ROOT)
            assert os.read(fd, 100) == b"ours"
            assert not os.get_inheritable(fd)
            os.close(fd)
        with pytest.raises(OSError) as caught:
            syscalls.openat2(root, "link", os.O_RDONLY, syscalls.RESOLVE_NO_SYMLINKS)
        assert caught.value.errno == errno.ELOOP
    finally:
        os.close(root)


@alone
def test_reset_signals() -> None:
    def act() -> str:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        syscalls.reset_signals()
        lines = Path("/proc/self/status").read_text().splitlines()
        return " ".join(line.split("\t")[1] for line in lines if line.startswith(("SigIgn", "SigBlk")))

    # 32 and 33 are the C library's own: make starts its children with them ignored (posix_spawn), and nobody can undo it.
    assert [int(mask, 16) & ~(3 << 31) for mask in _in_child(0, act).split()] == [0, 0]


@alone
def test_close_range() -> None:
    def act() -> str:
        fds = [os.dup(0) for _ in range(3)]
        syscalls.close_range(fds[0], fds[-1])
        return ",".join(str(Path(f"/proc/self/fd/{fd}").exists()) for fd in fds)

    assert _in_child(0, act) == "False,False,False"


@alone
def test_seccomp_filter() -> None:
    allow_all = (0x06).to_bytes(2, "little") + b"\0\0" + (0x7FFF0000).to_bytes(4, "little")

    def act() -> str:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        syscalls.seccomp_filter(allow_all)
        return "".join(line[-1] for line in Path("/proc/self/status").read_text().splitlines() if "Seccomp:" in line)

    assert _in_child(0, act) == "2"


@alone
def test_capability_sets() -> None:
    def act() -> str:
        kill = capabilities.mask_of(["CAP_KILL"])
        capabilities.set_bounding(kill)
        capabilities.set_capabilities(effective=kill, permitted=kill, inheritable=kill)
        capabilities.set_ambient(kill)
        masks = capabilities.parse_status(Path("/proc/self/status").read_text())
        return ",".join(f"{name}={mask:x}" for name, mask in sorted(masks.items()))

    assert _in_child(0, act) == "ambient=20,bounding=20,effective=20,inheritable=20,permitted=20"


def test_capability_names() -> None:
    assert capabilities.names_of(0b100001) == ("CAP_CHOWN", "CAP_KILL")
    assert capabilities.names_of(1 << 60) == ("CAP_60",)
    assert capabilities.BITS["CAP_CHECKPOINT_RESTORE"] == 40
    assert capabilities.last_capability() >= 37
    with pytest.raises(KeyError):
        capabilities.mask_of(["CAP_NOTHING"])


@alone
def test_namespace_kept_under_a_path(tmp_path: Path) -> None:
    path = tmp_path / "ns"

    def act() -> str:
        syscalls.mount(None, "/", None, syscalls.MS_PRIVATE | syscalls.MS_REC)
        namespaces.unshare(["uts"])
        namespaces.bind_namespace(str(path), "uts")
        kept = path.stat().st_ino == namespaces.identity("self", "uts")[1]
        namespaces.unbind_namespace(str(path))
        namespaces.unbind_namespace(str(path))
        return f"{kept} {path.exists()}"

    assert _in_child(syscalls.CLONE_NEWNS, act) == "True False"
