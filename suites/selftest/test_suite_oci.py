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
from harness.session.deviations import Deviation, parse_deviations, read_deviations

SUITE = paths.suites() / "oci"


def known_of(runtime: str) -> list[Deviation]:
    """What the installed version of a runtime is known not to keep to."""
    version = versions(parse_subject(f"oci:{runtime}"))[runtime].partition("+")[0]
    return [row for row in read_deviations(SUITE) if version in row.seen.get(runtime, ())]


def test_every_test_names_a_breach() -> None:
    assert unproven("oci") == []


@pytest.mark.parametrize("runtime", ["runc", "crun", "runsc"])
def test_the_suite_finds_what_is_known_and_no_more(runtime: str, tmp_path: Path) -> None:
    if reason := availability(parse_subject(f"oci:{runtime}")):
        pytest.skip(reason)
    records = sail("oci", f"oci:{runtime}", tmp_path)
    known, failed = known_of(runtime), named(records, Outcome.FAIL)
    if not known:
        pytest.skip(f"nobody has looked at this version of {runtime} yet")
    assert named(records, Outcome.ERROR, Outcome.SKIP) == {}
    assert {test: reason for test, reason in failed.items() if f"known of {runtime}" not in reason} == {}
    stale = [row.test for row in known if not row.sometimes and not any(map(row.is_about, failed))]
    assert stale == []


def test_minirt_passes_the_suite(tmp_path: Path) -> None:
    records = sail("oci", "oci:minirt", tmp_path)
    assert named(records, Outcome.FAIL, Outcome.ERROR, Outcome.SKIP) == {}


def test_every_test_finds_its_breach(tmp_path: Path) -> None:
    """A test that passes on a runtime that is broken in the very thing that it is about proves nothing.

    What runc does not offer, or does not keep to when it is whole, is proven on minirt.
    """
    records = sail("oci", "oci:runc", tmp_path, "-p", "oci_saboteur")
    unproven_there = {*named(records, Outcome.NA), *(row.test for row in known_of("runc"))}
    names = sorted({test.partition("[")[0] for test in unproven_there})
    rest = tmp_path / "rest"
    rest.mkdir()
    records += sail("oci", "oci:minirt", rest, "-p", "oci_saboteur", "-k", " or ".join(names))
    # What a machine does not offer cannot be broken there.
    missed = named(records, *(set(Outcome) - {Outcome.NA, Outcome.FAIL}))
    assert missed == {}


def test_each_deviation_links_to_its_sentence() -> None:
    rows = read_deviations(SUITE)
    assert len({row.test for row in rows}) == len(rows)
    for row in rows:
        assert row.sentence.startswith("https://github.com/opencontainers/")
        assert row.note
        assert row.seen
        assert all(row.seen.values())
        assert "minirt" not in row.seen


def test_a_deviation_has_all_its_fields() -> None:
    (row,) = parse_deviations(
        '[[deviation]]\nseen = { x = ["1.0"] }\ntest = "test_x"\nsentence = "https://x"\nnote = "does not"\n'
    )
    assert row.told_of("x") == "known of x 1.0: does not (https://x)"
    assert row.is_about("test_x")
    assert row.is_about("test_x[parameter]")
    assert not row.is_about("test_xy")
    with pytest.raises(TypeError):
        parse_deviations('[[deviation]]\ntest = "x"\nseen = {}\n')
