"""mountinfo: pure parsing, and this machine's own."""

from __future__ import annotations

import pytest

from harness.linux.mounts import mounts_below, parse_mountinfo, read_mounts, unescape

TEXT = """\
36 35 98:0 /sub /mnt/with\\040blank rw,noatime shared:1 master:2 - ext4 /dev/root\\134x rw,errors=continue
37 36 0:5 / /mnt/with\\040blank/below ro - tmpfs tmpfs rw
38 35 0:6 / /mnt/without rw - proc proc rw
"""


def test_parse() -> None:
    first, second, _ = parse_mountinfo(TEXT)
    assert (first.id, first.parent, first.device, first.root) == (36, 35, "98:0", "/sub")
    assert first.target == "/mnt/with blank"
    assert first.propagation == ("shared:1", "master:2")
    assert (first.fstype, first.source) == ("ext4", "/dev/root\\x")
    assert first.super_options == ("rw", "errors=continue")
    assert not first.read_only
    assert second.read_only
    assert second.propagation == ()


def test_below_is_deepest_first() -> None:
    assert [mount.id for mount in mounts_below(parse_mountinfo(TEXT), "/mnt/with blank")] == [37, 36]


@pytest.mark.parametrize("line", ["nonsense", "1 2 3:4 / / rw tmpfs tmpfs rw", "x 2 3:4 / / rw - tmpfs tmpfs rw"])
def test_nonsense_is_refused_with_the_line(line: str) -> None:
    with pytest.raises(ValueError, match="mountinfo"):
        parse_mountinfo(line)


def test_unescape() -> None:
    assert unescape("a\\040b\\011\\012\\134") == "a b\t\n\\"
    assert unescape("\\0") == "\\0"
    assert unescape("\\303\\251") == "é"


def test_own() -> None:
    assert any(mount.target == "/" for mount in read_mounts())
