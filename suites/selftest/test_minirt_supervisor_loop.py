"""The loop, the codes of its end, and names of sysctls."""

from __future__ import annotations

import os
import select
import signal

import pytest

from harness.linux import syscalls
from harness.minirt.supervisor.container import exit_code_of_stranger, reap
from harness.minirt.supervisor.loop import Loop
from harness.minirt.supervisor.pod import sysctl_path


def test_timers_fire_in_order_and_can_be_cancelled() -> None:
    loop = Loop()
    found: list[str] = []
    loop.after(0.02, loop.stop)
    loop.after(0.01, lambda: found.append("second"))
    loop.after(0.0, lambda: found.append("first"))
    loop.after(0.005, lambda: found.append("never")).cancel()
    loop.run()
    assert found == ["first", "second"]
    loop.close()


def test_descriptors() -> None:
    loop = Loop()
    reading, writing = os.pipe()
    found: list[bytes] = []

    def ready() -> None:
        found.append(os.read(reading, 10))
        loop.remove(reading)
        loop.remove(reading)
        loop.stop()

    loop.add(reading, ready)
    os.write(writing, b"word")
    loop.run()
    assert found == [b"word"]
    loop.close()
    os.close(reading)
    os.close(writing)


def test_one_callee_may_take_away_another() -> None:
    loop = Loop()
    pipes = [os.pipe() for _ in range(2)]
    found: list[int] = []

    def ready(number: int) -> None:
        found.append(number)
        for reading, _ in pipes:
            loop.remove(reading)
        loop.stop()

    for number, (reading, writing) in enumerate(pipes):
        loop.add(reading, lambda number=number: ready(number))  # type: ignore[misc]
        os.write(writing, b"x")
    loop.run()
    assert len(found) == 1
    loop.close()
    for ends in pipes:
        for fd in ends:
            os.close(fd)


@pytest.mark.parametrize(("number", "code"), [(0, 3), (signal.SIGKILL, 137), (signal.SIGTERM, 143)])
def test_exit_codes(number: int, code: int) -> None:
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 3" if not number else "sleep 100"], {})
    pidfd = syscalls.pidfd_open(pid)
    if number:
        os.kill(pid, number)
    assert select.select([pidfd], [], [], 10)[0]
    assert exit_code_of_stranger(pid, pidfd) == code  # it is a zombie
    assert reap(pidfd) == code
    assert reap(pidfd) == 255  # it is nobody's child any more
    assert exit_code_of_stranger(pid, pidfd) in (code, None)
    os.close(pidfd)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding"),
        ("net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"),
        ("single", "single"),
    ],
)
def test_names_of_sysctls(name: str, path: str) -> None:
    assert sysctl_path(name) == path
