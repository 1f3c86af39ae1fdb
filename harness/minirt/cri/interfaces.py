"""What went through the network interfaces of pods: ``/proc/thread-self/net/dev``, seen from inside their namespaces."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from harness.linux import syscalls


@dataclass(frozen=True, slots=True)
class Interface:
    """Counters of one interface since it was made."""

    name: str
    received_bytes: int
    received_packets: int
    receive_errors: int
    receive_drops: int
    sent_bytes: int
    sent_packets: int
    send_errors: int
    send_drops: int


def parse_interfaces(text: str) -> list[Interface]:
    """The text of ``net/dev``: two lines of headings, then a line an interface; the loopback is left out."""
    found = []
    for line in text.splitlines()[2:]:
        name, _, numbers = line.partition(":")
        columns = [int(word) for word in numbers.split()]
        if name.strip() != "lo":
            found.append(Interface(name.strip(), *columns[:4], *columns[8:12]))
    return found


def read_interfaces(namespaces: Iterable[str]) -> Mapping[str, list[Interface]]:
    """The interfaces in each network namespace (a path); one that is gone is left out.

    A thread of its own visits one namespace after the other and ends there: none of the daemon's other threads can be left
    in a wrong one.
    """
    found: dict[str, list[Interface]] = {}

    def visit() -> None:
        for path in namespaces:
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    syscalls.setns(fd, syscalls.CLONE_NEWNET)
                finally:
                    os.close(fd)
                with open("/proc/thread-self/net/dev") as file:
                    found[path] = parse_interfaces(file.read())

    thread = threading.Thread(target=visit, name="interfaces")
    thread.start()
    thread.join()
    return found
