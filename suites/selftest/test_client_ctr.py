"""What ctr 1.6 printed, and what becomes of it."""

from __future__ import annotations

from harness.client.ctr import _DIGEST, parse_tasks

PULLED = (
    "127.0.0.1:5000/seatrial/busybox:1:                                                resolved       |++++| \n"
    "manifest-sha256:7eec2de9cd794bed1a25f98993752ccccb24d2e581a0750bd8d4ff99766b0a0e: done           |++++| \n"
    "layer-sha256:d9fdb34cff628309c2b44f07927101f43b69720b02f433cac7d75ea27db1ecaa:    done           |++++| \n"
    "elapsed: 0.1 s                                                                    total:   0.0 B (0.0 B/s) \n"
)


def test_tasks() -> None:
    listing = "TASK    PID      STATUS    \nx2      14163    RUNNING\nx3      0    STOPPED\n"
    assert parse_tasks(listing) == {"x2": "RUNNING", "x3": "STOPPED"}
    assert parse_tasks("TASK    PID    STATUS    \n") == {}
    assert parse_tasks("") == {}


def test_the_manifests_digest_is_found_not_a_layers() -> None:
    found = _DIGEST.search(PULLED)
    assert found is not None
    assert found[1] == "sha256:7eec2de9cd794bed1a25f98993752ccccb24d2e581a0750bd8d4ff99766b0a0e"
