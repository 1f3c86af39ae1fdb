"""RuntimeDefault as it is loaded: what a process behind it may call, and what the kernel answers otherwise."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.linux.capabilities import BITS
from harness.minirt.container.seccomp import compile_profile
from harness.minirt.cri import seccomp
from harness.minirt.cri.seccomp import default_profile

_PROBE = """
import ctypes, json, os, sys
from harness.linux import syscalls
code, flags, calls = bytes.fromhex(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)
syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
syscalls.seccomp_filter(code, flags)
found = []
for call in calls:
    ctypes.set_errno(0)
    libc.syscall(*[ctypes.c_long(word) for word in call])
    found.append(ctypes.get_errno())
print(json.dumps(found))
"""
_NOWHERE = -1
"""an argument that the kernel itself refuses, so that nothing happens where a call is let through"""
CALLS = {
    "add_key": (248, _NOWHERE, _NOWHERE, 0, 0, 0),
    "clone3": (435, 0, 0),
    "personality of another system": (135, 0x0004),
    "personality as it is": (135, 0xFFFFFFFF),
    "socket AF_ALG": (41, 38, 5, 0),
    "socket AF_VSOCK": (41, 40, 1, 0),
    "unshare": (272, 0x10000000),
    "open_by_handle_at": (304, _NOWHERE, 0, 0),
    "keyctl": (250, _NOWHERE),
    "of the year 2099": (4000,),
    "of the year 2099, x32": (0x40000000 + 4000,),
}


def answers(granted: tuple[str, ...]) -> dict[str, int]:
    """What errno is after each of `CALLS` behind the filter for these capabilities."""
    filter = compile_profile(default_profile(granted))
    words = [sys.executable, "-c", _PROBE, filter.code.hex(), str(filter.flags), json.dumps(list(CALLS.values()))]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return dict(zip(CALLS, json.loads(done.stdout), strict=True))


@pytest.mark.skipif(
    sys.platform != "linux" or not Path("/lib64/ld-linux-x86-64.so.2").exists(), reason="numbers of x86_64"
)
def test_what_the_kernel_answers() -> None:
    found = answers(())
    refused = {name for name, number in found.items() if number == errno.EPERM}
    assert refused == {
        "add_key", "personality of another system", "socket AF_ALG", "socket AF_VSOCK", "unshare", "open_by_handle_at",
        "keyctl", "of the year 2099, x32",
    }  # fmt: skip
    # A C library falls back to an older call only where the kernel says that it does not know the new one.
    assert found["clone3"] == found["of the year 2099"] == errno.ENOSYS
    assert found["personality as it is"] == 0
    found = answers(("CAP_SYS_ADMIN", "CAP_DAC_READ_SEARCH"))
    assert found["clone3"] == errno.EINVAL  # the kernel's own answer to a size of 0
    assert found["open_by_handle_at"] != errno.EPERM
    assert found["keyctl"] == errno.EPERM


def test_the_list_is_in_order() -> None:
    listed = json.loads(Path(seccomp.__file__).with_name("seccomp.json").read_text())
    rows = [listed["always"], *listed["with_capability"].values(), *listed["on_machine"].values()]
    assert all(row == sorted(set(row)) for row in rows)
    assert set(listed["with_capability"]) <= set(BITS)
    assert not set(listed["always"]) & {
        "clone",
        "clone3",
        "mount",
        "unshare",
        "keyctl",
        "io_uring_setup",
        "userfaultfd",
    }


def test_capabilities_open_the_profile() -> None:
    def allowed(*granted: str) -> set[str]:
        rules = default_profile(granted)["syscalls"]
        return {
            name
            for rule in rules
            if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule
            for name in rule["names"]
        }

    assert {"read", "execve", "ptrace"} <= allowed()
    assert not {"mount", "reboot", "bpf", "clone", "clone3", "chroot"} & allowed()
    assert {"mount", "bpf", "clone", "clone3"} <= allowed("CAP_SYS_ADMIN")
    assert "reboot" not in allowed("CAP_SYS_ADMIN")
    assert "reboot" in allowed("CAP_SYS_BOOT")
    assert default_profile(["CAP_CHOWN"]) is default_profile(["CAP_KILL"])  # neither opens anything: compiled once


def test_a_filter_is_compiled_once(tmp_path: Path) -> None:
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["sync"], "action": "SCMP_ACT_ERRNO"}]}
    first = compile_profile(profile, str(tmp_path))
    assert compile_profile(dict(profile), str(tmp_path)) is first
    [kept] = tmp_path.iterdir()
    assert kept.read_bytes() == first.code
