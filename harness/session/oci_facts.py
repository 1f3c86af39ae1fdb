"""What the probe of ``suites/oci`` (``fixtures/oci/probe.sh``) says of the process that it is, parsed.

A probe is asked with words, and answers one JSON object with a member for each; `Facts` turns the kernel's own texts in
it into values.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.linux.capabilities import NAMES
from harness.linux.mounts import Mount, parse_mountinfo

CAPABILITY_SETS: Mapping[str, str] = {
    "bounding": "CapBnd",
    "effective": "CapEff",
    "permitted": "CapPrm",
    "inheritable": "CapInh",
    "ambient": "CapAmb",
}
"""The sets of ``process.capabilities`` → their lines in ``/proc/PID/status``."""
_LIMITS: Mapping[str, str] = {
    "Max cpu time": "RLIMIT_CPU",
    "Max file size": "RLIMIT_FSIZE",
    "Max data size": "RLIMIT_DATA",
    "Max stack size": "RLIMIT_STACK",
    "Max core file size": "RLIMIT_CORE",
    "Max resident set": "RLIMIT_RSS",
    "Max processes": "RLIMIT_NPROC",
    "Max open files": "RLIMIT_NOFILE",
    "Max locked memory": "RLIMIT_MEMLOCK",
    "Max address space": "RLIMIT_AS",
    "Max file locks": "RLIMIT_LOCKS",
    "Max pending signals": "RLIMIT_SIGPENDING",
    "Max msgqueue size": "RLIMIT_MSGQUEUE",
    "Max nice priority": "RLIMIT_NICE",
    "Max realtime priority": "RLIMIT_RTPRIO",
    "Max realtime timeout": "RLIMIT_RTTIME",
}
_LIMIT_LINE = re.compile(r"^(Max [a-z ]+?) {2,}(\S+) +(\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Node:
    """A file, as stat(2) tells of it."""

    mode: int
    uid: int
    gid: int
    major: int
    minor: int
    size: int

    @property
    def kind(self) -> str:
        """``c``, ``b`` or ``p``, as ``linux.devices`` has it; ``-`` for a plain file, ``d`` and ``l``."""
        return stat.filemode(self.mode)[0]

    @property
    def permissions(self) -> int:
        return stat.S_IMODE(self.mode)


@dataclass(frozen=True, slots=True)
class Facts:
    """The answers of one probe, by the words that asked for them. Text is ISO 8859-1: one character a byte."""

    said: Mapping[str, Any]

    def __getitem__(self, word: str) -> Any:
        return self.said[word]

    def text(self, word: str) -> str:
        """An answer that has to be there, as text. Raises `AssertionError`."""
        found = self.said[word]
        assert found is not None, f"the container has no {word.partition(':')[2] or word}"
        return utf8(str(found))

    @property
    def mounts(self) -> list[Mount]:
        return parse_mountinfo(self.text("proc:mountinfo"))

    def mount(self, target: str) -> Mount:
        """The topmost mount at `target`. Raises `AssertionError`."""
        found = [mount for mount in self.mounts if mount.target == target]
        assert found, f"nothing is mounted at {target}: {[mount.target for mount in self.mounts]}"
        return found[-1]

    @property
    def environment(self) -> list[str]:
        return strings(self.text("proc:environ"))

    @property
    def arguments(self) -> list[str]:
        return strings(self.text("proc:cmdline"))

    def status(self, field: str) -> str:
        return status_field(self.text("proc:status"), field)

    @property
    def capabilities(self) -> dict[str, set[str]]:
        """By the names that ``process.capabilities`` has for the sets."""
        return capabilities_of(self.text("proc:status"))

    @property
    def limits(self) -> dict[str, tuple[int | None, int | None]]:
        """Soft and hard limit by ``RLIMIT_*``; None: unlimited."""
        return limits_of(self.text("proc:limits"))

    def node(self, path: str) -> Node | None:
        """What is at `path`, asked for with ``stat:``."""
        return None if self.said[f"stat:{path}"] is None else node_of(str(self.said[f"stat:{path}"]))

    def tried(self, script: str) -> tuple[int, str]:
        """Exit status and output of a script, asked for with ``try:``."""
        status, output = self.said[f"try:{script}"]
        return int(status), utf8(str(output))


def parse_facts(printed: bytes) -> Facts:
    """The last line that a container printed, as the probe prints. Raises `AssertionError` where it is none."""
    lines = printed.splitlines()
    try:
        said = json.loads(lines[-1]) if lines else None
    except ValueError:
        said = None
    assert isinstance(said, dict), f"the probe did not run to its end; the container printed {printed[-400:]!r}"
    # The probe's own words come back as it heard them: bytes, too.
    return Facts({utf8(word): value for word, value in said.items()})


def utf8(text: str) -> str:
    """Bytes, one character each, as the UTF-8 text that they are; what is none stays as surrogates."""
    return text.encode("latin-1").decode(errors="surrogateescape")


def strings(text: str) -> list[str]:
    """The parts of a text that are each ended by NUL (``/proc/PID/environ``, ``cmdline``)."""
    return text.removesuffix("\0").split("\0") if text else []


def status_field(text: str, field: str) -> str:
    """A line of ``/proc/PID/status``; "" where the kernel has none."""
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and name == field:
            return value.strip()
    return ""


def capabilities_of(status: str) -> dict[str, set[str]]:
    """The five sets in the text of ``/proc/PID/status``; bits that have no name yet as numbers."""
    found = {}
    for kind, line in CAPABILITY_SETS.items():
        mask = int(status_field(status, line) or "0", 16)
        found[kind] = {
            NAMES[bit] if bit < len(NAMES) else str(bit) for bit in range(mask.bit_length()) if mask >> bit & 1
        }
    return found


def limits_of(text: str) -> dict[str, tuple[int | None, int | None]]:
    """The text of ``/proc/PID/limits``."""
    return {
        _LIMITS[name]: (_number(soft), _number(hard))
        for name, soft, hard in _LIMIT_LINE.findall(text)
        if name in _LIMITS
    }


def _number(word: str) -> int | None:
    return None if word == "unlimited" else int(word)


def node_of(text: str) -> Node:
    """The probe's answer to ``stat:``."""
    mode, uid, gid, major, minor, size = text.split()
    return Node(int(mode, 16), int(uid), int(gid), int(major, 16), int(minor, 16), int(size))
