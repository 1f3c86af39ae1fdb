"""The suite ``oci`` passes on runc, crun and minirt but for what is known, and each of its tests finds the breach it names."""

from __future__ import annotations

from pathlib import Path

import pytest
from sailing import named, sail, unproven

from harness import paths
from harness.engine import availability
from harness.engine.opening import versions
from harness.model.record import Outcome
from harness.model.subject import parse_subject
from harness.session.deviations import parse_deviations, read_deviations

KNOWN: frozenset[str] = frozenset()
"""Tests that minirt does not pass yet."""
SUITE = paths.suites() / "oci"


def known_of(runtime: str) -> set[str]:
    """The tests that the installed version of a runtime is known not to pass."""
    version = versions(parse_subject(f"oci:{runtime}"))[runtime]
    return {row.test for row in read_deviations(SUITE) if row.runtime == runtime and version in row.seen}


def test_every_test_names_a_breach() -> None:
    assert unproven("oci") == []


@pytest.mark.parametrize("runtime", ["runc", "crun", "runsc", "minirt"])
def test_the_suite_finds_what_is_known_and_no_more(runtime: str, tmp_path: Path) -> None:
    if reason := availability(parse_subject(f"oci:{runtime}")):
        pytest.skip(reason)
    known = KNOWN if runtime == "minirt" else known_of(runtime)
    records = sail("oci", f"oci:{runtime}", tmp_path)
    wrong = named(records, Outcome.FAIL, Outcome.ERROR, Outcome.SKIP)
    assert {test: reason for test, reason in wrong.items() if test not in known} == {}
    assert sorted(known - named(records, Outcome.FAIL).keys()) == []
    if runtime != "minirt":
        assert [test for test, reason in wrong.items() if f"known of {runtime}" not in reason] == []


def test_every_test_finds_its_breach(tmp_path: Path) -> None:
    """A test that passes on a runtime that is broken in the very thing that it is about proves nothing."""
    records = sail("oci", "oci:runc", tmp_path, "-p", "oci_saboteur")
    found = named(records, Outcome.FAIL)
    # What a machine or runtime does not offer cannot be broken there.
    missed = {
        test: reason for test, reason in named(records, *(set(Outcome) - {Outcome.NA})).items() if test not in found
    }
    assert missed == {}


def test_each_deviation_links_to_its_sentence() -> None:
    rows = read_deviations(SUITE)
    assert len({(row.runtime, row.test) for row in rows}) == len(rows)
    for row in rows:
        assert row.sentence.startswith(("https://github.com/opencontainers/", "https://specs.opencontainers.org/"))
        assert row.note
        assert row.seen


def test_a_deviation_has_all_its_fields() -> None:
    (row,) = parse_deviations(
        '[[deviation]]\nruntime = "x"\nseen = ["1.0"]\ntest = "test_x"\nsentence = "https://x"\nnote = "does not"\n'
    )
    assert str(row) == "known of x 1.0: does not (https://x)"
    with pytest.raises(TypeError):
        parse_deviations('[[deviation]]\nruntime = "x"\nseen = []\n')
