"""harness.machine.doctor: judgement from given facts; and the command, on this machine."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli import doctor as command
from harness.machine.doctor import Diagnosis, Health, diagnose, prospect
from harness.machine.facts import CONSEQUENCES, Facts
from harness.machine.kernel import Feature
from harness.model.subject import BUILT_IN, Subject

GOOD = Facts(
    kernel="6.1.0",
    distribution="Debian",
    architecture="x86_64",
    cgroup_mode="v2",
    cgroup_controllers=("cpu", "memory"),
    cpu_model="Some CPU",
    cores=2,
    memory_bytes=8 << 30,
    disk_free_bytes=50 << 30,
    root=True,
    systemd=True,
    capabilities=tuple(CONSEQUENCES),
    python="3.11.2",
)


def judge(
    facts: Facts = GOOD,
    *,
    missing: tuple[str, ...] = (),
    features: tuple[Feature, ...] = (),
    absent: tuple[str, ...] = (),
) -> Diagnosis:
    def why_not(subject: Subject) -> str:
        return f"{subject.engine} is not installed: seatrial setup {subject.engine}" if subject.engine in absent else ""

    return diagnose(
        facts,
        features,
        BUILT_IN,
        find=lambda name: None if name in missing else Path("/usr/bin") / name,
        version=lambda program: f"1.0 of {program.name}",
        why_not=why_not,
    )


def test_a_whole_machine_has_no_obstacle() -> None:
    diagnosis = judge()
    assert diagnosis.obstacle == ""
    assert all(prospect.runs for prospect in diagnosis.prospects)
    assert {row.health for row in (*diagnosis.machine, *diagnosis.tools)} == {Health.GOOD}


def test_a_missing_engine_names_the_command_that_mends_it() -> None:
    diagnosis = judge(missing=("dockerd",), absent=("docker",))
    rows = {row.thing: row for row in diagnosis.tools}
    assert rows["docker"].state == "not found"
    assert rows["docker"].remedy == "seatrial setup docker"
    prospects = {prospect.subject: prospect for prospect in diagnosis.prospects}
    assert prospects["docker:sdk:runc"].reason == "docker is not installed"
    assert prospects["docker:sdk:runc"].remedy == "seatrial setup docker"
    assert prospects["oci:runc"].runs
    assert diagnosis.obstacle == ""


@pytest.mark.parametrize(
    ("diagnosis", "word"),
    [
        (judge(replace(GOOD, root=False)), "root"),
        (judge(replace(GOOD, cgroup_mode="none", cgroup_controllers=())), "cgroups"),
        (judge(replace(GOOD, capabilities=())), "CAP_SYS_ADMIN"),
        (judge(missing=("busybox",)), "busybox"),
        (judge(features=(Feature("overlayfs", "no", "images have no layers without it"),)), "overlayfs"),
        (judge(absent=("minirt",)), "minirt"),
    ],
    ids=["no root", "no cgroups", "no capability", "no busybox", "no overlayfs", "no minirt"],
)
def test_what_stops_everything_is_an_obstacle(diagnosis: Diagnosis, word: str) -> None:
    assert word in diagnosis.obstacle


def test_what_only_limits_is_no_obstacle() -> None:
    lacking = tuple(name for name in CONSEQUENCES if name != "CAP_SYS_RESOURCE")
    diagnosis = judge(replace(GOOD, capabilities=lacking, disk_free_bytes=1 << 20), missing=("crictl", "crun"))
    assert diagnosis.obstacle == ""
    limited = {row.thing for row in (*diagnosis.machine, *diagnosis.tools) if row.health is Health.LIMITED}
    assert limited == {"CAP_SYS_RESOURCE", "disk", "crictl", "crun"}


def test_a_reason_without_a_remedy_stands_alone() -> None:
    found = prospect(BUILT_IN[0], lambda subject: "needs a kernel of this decade")
    assert (found.reason, found.remedy, found.runs) == ("needs a kernel of this decade", "", False)


def test_the_tables_name_every_subject_and_state() -> None:
    text = command.render(judge(missing=("dockerd",), absent=("docker",)))
    without = [subject for subject in BUILT_IN if subject.engine != "docker"]
    assert f"Subjects: {len(without)} of {len(BUILT_IN)} will run" in text
    for subject in BUILT_IN:
        assert subject.name in text
    assert "seatrial setup docker" in text


def test_the_command_describes_this_machine_and_takes_a_subject_of_the_users_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("#!/bin/sh\necho mine version 1\n")
    mine.chmod(0o755)
    result = CliRunner().invoke(command.doctor, [f"mine=oci:{mine}"], standalone_mode=False)
    assert result.exception is None
    assert "mine" in result.output
    assert "of 1 will run" in result.output
    assert "cgroups" in result.output


def test_subjects_of_the_configuration_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "seatrial.toml").write_text('[subject.mine]\nruntime = "oci:/nowhere/mine"\n')
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command.doctor, [], standalone_mode=False)
    assert "/nowhere/mine is not a program that can be run" in " ".join(result.output.split())
