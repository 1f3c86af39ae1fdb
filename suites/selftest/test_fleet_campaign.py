"""harness.fleet.campaign and its command: what each machine is told to try."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from harness.cli import fleet_run
from harness.cli.fleet_run import perform_fleet_run
from harness.cli.trial_run import Request
from harness.errors import UsageError
from harness.fleet.accelerator import Kind
from harness.fleet.campaign import LOCAL, Order, Target, _groups, _suited
from harness.fleet.definition import find_definition, read_definitions

TRIXIE = find_definition("trixie", read_definitions())
QUICKLY = Order((), ("--quick",), (), (), None, Path("results"), quick=True, seed=1)


def suited(order: Order, kind: Kind) -> tuple[Order, list[str]]:
    said: list[str] = []
    three = dataclasses.replace(TRIXIE, cpus=3)
    return _suited(order, Target("trixie", three), {"accelerator": kind.value}, said.append), said


def test_an_emulated_machine_tries_few_subjects_as_many_at_a_time_as_it_has_processors() -> None:
    order, said = suited(QUICKLY, Kind.TCG)
    assert order.subjects == TRIXIE.subjects(quick=True)
    assert order.options == ("--turns=1", "--jobs=3", "--quick")
    assert f"{len(TRIXIE.quick)} subjects" in said[0]


@pytest.mark.parametrize("kind", list(Kind))
def test_what_is_named_is_tried_as_it_is_named(kind: Kind) -> None:
    named = dataclasses.replace(QUICKLY, subjects=("oci:crun",))
    assert suited(named, kind) == (named, [])


def test_what_a_machine_attaches_goes_by_its_name() -> None:
    named = dataclasses.replace(QUICKLY, subjects=("oci:crun", "systemd-docker:sdk:runc"))
    order, _ = suited(named, Kind.TCG)
    assert order.subjects == ("oci:crun", "systemd-docker:sdk:runc=docker:sdk:runc@/run/docker.sock")


@pytest.mark.parametrize(("kind", "quick"), [(Kind.KVM, True), (Kind.KVM, False), (Kind.TCG, False)])
def test_elsewhere_everything_is_tried(kind: Kind, quick: bool) -> None:
    order, said = suited(dataclasses.replace(QUICKLY, quick=quick), kind)
    assert order.subjects == TRIXIE.subjects(quick=False)
    assert (order.options, said) == (QUICKLY.options, [])


def test_machines_run_side_by_side_as_cores_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(4))
    own = [Target(f"own{cpus}", dataclasses.replace(TRIXIE, cpus=cpus)) for cpus in (1, 3, 2)]
    groups = _groups([own[0], Target("ssh://root@there"), own[1], Target(LOCAL), own[2]])
    assert [[target.name for target in group] for group in groups] == [
        [LOCAL],
        ["own1", "ssh://root@there", "own3"],
        ["own2"],
    ]


@pytest.mark.parametrize(("typed", "expected"), [((), ("mine",)), (("oci:crun",), ("oci:crun",))])
def test_subjects_of_a_configuration_are_those_of_every_machine(
    typed: tuple[str, ...], expected: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked(Exception):
        pass

    def hold_campaign(targets: Any, order: Order, *_: Any) -> Any:
        raise Asked(order)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fleet_run, "hold_campaign", hold_campaign)
    Path("seatrial.toml").write_text('[run]\nsubjects = ["mine"]\n[subject.mine]\nruntime = "oci:/usr/bin/mine"\n')
    with pytest.raises(Asked) as caught:
        perform_fleet_run(["ssh://root@there"], Request(subjects=typed))
    (order,) = caught.value.args
    assert (order.subjects, order.config) == (expected, Path("seatrial.toml"))


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (
            Request(subjects=("systemd-docker:sdk:runk",)),
            r"^trixie: .*did you mean 'systemd-docker:sdk:runc'\?.*, systemd-containerd:grpc:runc",
        ),
        (Request(subjects=("systemd-docker:sdk:runc",)), "^ssh://root@there: .*did you mean 'docker:sdk:runc'"),
        (Request(suites=("lifecycles",)), "there is no suite 'lifecycles'"),
    ],
    ids=["subject of none", "subject of one", "suite"],
)
def test_what_one_machine_does_not_know_starts_none(
    request_: Request, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be told by the machine only, once that is up."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(fleet_run, "hold_campaign", lambda *_: pytest.fail("a machine was visited"))
    with pytest.raises(UsageError, match=told):
        perform_fleet_run(["trixie", "ssh://root@there"], request_)
