"""The suite ``cri`` passes on the reference runtime and on minirt, and each of its tests finds the breach it names."""

from __future__ import annotations

from pathlib import Path

import pytest
from sailing import named, sail, unproven

from harness.model.record import Outcome

KNOWN: frozenset[str] = frozenset()
"""Tests that minirt does not pass yet."""
SHORTCOMINGS = frozenset(
    {
        "test_execsync_caps_its_output",  # by a few bytes more than its own client takes
        "test_execsync_that_takes_too_long_is_killed",  # but not what it started in the background
        "test_list_of_images_is_filtered",
        "test_log_path_cannot_leave_its_directory[../../escaped.log]",
        "test_network_of_a_pod",  # has no timestamp
        "test_out_of_memory",  # now and then: with cgroup v1 its shim tells of none once the cgroup is gone
        "test_stop_of_a_removed_pod",
    }
)
"""What containerd 1.6 does not keep to; a later one may."""
OF_THE_RUNTIME = " or ".join(f"test_{area}.py" for area in ("containers", "mounts", "resources", "security"))
"""What the OCI runtime below an engine has a part in. The rest is the engine's own, and tried with runc."""


def test_every_test_names_a_breach() -> None:
    assert unproven("cri") == []


@pytest.mark.parametrize(
    ("subject", "known", "options"),
    [
        ("minirt:grpc", KNOWN, ()),
        ("containerd:grpc:runc", SHORTCOMINGS, ()),
        ("containerd:grpc:minirt", SHORTCOMINGS, ("-k", OF_THE_RUNTIME)),
    ],
)
def test_the_suite_passes(subject: str, known: frozenset[str], options: tuple[str, ...], tmp_path: Path) -> None:
    records = sail("cri", subject, tmp_path, *options)
    wrong = named(records, Outcome.FAIL, Outcome.ERROR, Outcome.SKIP)
    assert {test: reason for test, reason in wrong.items() if test not in known} == {}


def test_every_test_finds_its_breach(tmp_path: Path) -> None:
    """A test that passes on a runtime that is broken in the very thing that it is about proves nothing."""
    records = sail("cri", "minirt:grpc", tmp_path, "-p", "cri_saboteur")
    found = named(records, Outcome.FAIL)
    # What a machine or runtime does not offer cannot be broken there.
    missed = {
        test: reason for test, reason in named(records, *(set(Outcome) - {Outcome.NA})).items() if test not in found
    }
    assert {test: reason for test, reason in missed.items() if test not in KNOWN} == {}
