"""Disk, memory and clock of the machine under trial."""

from __future__ import annotations

from testinfra.host import Host

from harness.machine.doctor import LEAST_DISK_BYTES, LEAST_MEMORY_BYTES
from harness.machine.facts import parse_memory


def test_disk_has_room_for_images(host: Host) -> None:
    free = int(host.check_output("df --output=avail -B1 /var/lib").split()[-1])
    assert free >= LEAST_DISK_BYTES, f"{free} bytes are free below /var/lib"


def test_disk_has_inodes(host: Host) -> None:
    """Layers are many small files. A file system without fixed inodes (btrfs) shows 0, or no number."""
    total, free = host.check_output("df --output=itotal,iavail /var/lib").split()[-2:]
    assert not total.isdigit() or int(total) == 0 or int(free) >= 10_000


def test_run_can_be_written(host: Host) -> None:
    """Sockets and runtime state of private engines live under /run."""
    assert host.run("test -d /run -a -w /run").rc == 0


def test_memory_is_enough_for_an_engine(host: Host) -> None:
    assert parse_memory(host.file("/proc/meminfo").content_string) >= LEAST_MEMORY_BYTES


def test_clock_goes_forward_in_small_steps(host: Host) -> None:
    """Steps take milliseconds: a clock that ticks with the timer interrupt (jiffies) cannot tell them apart."""
    source = host.file("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    if source.exists:
        assert source.content_string.strip() != "jiffies"
    first, second = (int(host.check_output("date +%s%N")) for _ in range(2))
    assert second > first


def test_clock_is_not_years_off(host: Host) -> None:
    """Log timestamps and TLS both need the date; a machine that never learned it starts in 1970 or at its build."""
    assert int(host.check_output("date +%Y")) >= 2024
