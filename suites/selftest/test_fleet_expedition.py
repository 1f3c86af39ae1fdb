"""A trial on another machine, which is this computer behind an ssh server of the test's own."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fleet_sshd import Server, ssh_server

from harness.clock import wait_until
from harness.command import HostProcess, HostRunner
from harness.errors import MachineError
from harness.fleet.campaign import LocalShore
from harness.fleet.cargo import parse_interpreter
from harness.fleet.checks import check_machine
from harness.fleet.definition import read_definitions
from harness.fleet.expedition import Log, hold, shipped
from harness.fleet.lines import NEVER
from harness.fleet.link import Link
from harness.linux.cgroups import read_layout
from harness.store import read_folder

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="a trial needs root"),
    # They look at what stays in a folder that they share.
    pytest.mark.xdist_group("expedition"),
]


def shipped_folders() -> set[Path]:
    """What was shipped to this computer and is still there."""
    return set(Path("/var/tmp").glob("seatrial-*"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "ssh"
    folder.mkdir()
    with ssh_server(folder) as running:
        yield running


@contextmanager
def campaign(tmp_path: Path, server: Server, *words: str) -> Iterator[HostProcess]:
    """``seatrial run`` on the server's machine, in the background."""
    argv = [
        *(sys.executable, "-m", "harness.cli", "run", "--output", str(tmp_path / "results")),
        *("--machine", server.name, "--ssh-config", str(server.config), *words),
    ]
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        process = HostRunner().start(argv, stdout_fd=out.fileno(), stderr_fd=err.fileno())
        try:
            yield process
        finally:
            process.stop(30)


def told(tmp_path: Path) -> str:
    return (tmp_path / "out").read_text() + (tmp_path / "err").read_text()


def runs(tmp_path: Path) -> dict[str, Any]:
    """What was written about each machine."""
    found = [read_folder(path.parent) for path in (tmp_path / "results").glob("*/run.json")]
    return {data.run.machine.get("name", "local"): data for data in found}


def wait_for_records(tmp_path: Path, name: str) -> None:
    """Until the trial on that machine is in the middle."""
    wait_until(lambda: name in runs(tmp_path) and len(runs(tmp_path)[name].records) > 5, 120, "records")


def test_records_come_back_and_nothing_stays_there(tmp_path: Path, server: Server) -> None:
    before = shipped_folders()
    with campaign(tmp_path, server, "--quick", "--seed", "7", "oci:crun") as process:
        assert process.wait(240) == 0, told(tmp_path)
    data = runs(tmp_path)[server.name]
    assert data.run.ended and not data.run.interrupted
    assert data.run.seed == 7
    assert data.run.subjects == ("oci:crun",)
    assert "checks passed" in data.run.machine["checks"]
    assert {record.phase.value for record in data.records} == {"check", "measure"}
    assert sum(record.outcome.value == "pass" for record in data.records) > 40
    assert all(
        record.wall_ns for record in data.records if record.phase.value == "measure" and record.outcome.value == "pass"
    )
    assert "oci:crun" in (tmp_path / "out").read_text()
    assert shipped_folders() <= before


def test_a_connection_that_is_lost_keeps_what_came_and_the_others_go_on(tmp_path: Path, server: Server) -> None:
    before = shipped_folders()
    with campaign(tmp_path, server, "--machine", "local", "--quick", "oci:crun") as process:
        wait_until(lambda: "local" in runs(tmp_path) and runs(tmp_path)["local"].run.ended, 120, "the trial here")
        wait_for_records(tmp_path, server.name)
        server.cut()
        assert process.wait(120) == 1, told(tmp_path)
    far, near = runs(tmp_path)[server.name], runs(tmp_path)["local"]
    assert "connection was lost" in far.run.machine["fault"]
    assert far.records and not far.run.ended
    assert "fault" not in near.run.machine and near.run.ended
    assert len(near.records) > len(far.records)
    assert "connection was lost" in (tmp_path / "out").read_text()
    (page,) = (tmp_path / "results").glob("*-machines.html")
    assert str(page) in (tmp_path / "out").read_text()
    assert all(word in page.read_text() for word in ("connection was lost", server.name, "local"))
    # The trial over there notices that nobody listens, ends, and takes its folder with it.
    wait_until(lambda: shipped_folders() <= before, 90, "the trial over there to end")
    assert not Path("/run/seatrial", far.run.run).exists()


def test_ctrl_c_ends_the_trial_there_and_reports_what_there_was(tmp_path: Path, server: Server) -> None:
    before = shipped_folders()
    with campaign(tmp_path, server, "--quick", "oci:crun") as process:
        wait_for_records(tmp_path, server.name)
        process.signal(signal.SIGINT)
        assert process.wait(120) == 130, told(tmp_path)
    data = runs(tmp_path)[server.name]
    assert data.run.interrupted and data.run.ended
    assert "fault" not in data.run.machine
    assert data.records
    assert shipped_folders() <= before
    assert not Path("/run/seatrial", data.run.run).exists()


def test_a_campaign_that_is_killed_leaves_what_came_and_nothing_else(tmp_path: Path, server: Server) -> None:
    before = shipped_folders()
    with campaign(tmp_path, server, "--quick", "oci:crun") as process:
        wait_for_records(tmp_path, server.name)
        process.signal(signal.SIGKILL)
    data = runs(tmp_path)[server.name]
    assert data.records and not data.run.ended
    (connection,) = server.connections
    wait_until(connection.is_closed, 30, "the link to end")
    wait_until(lambda: shipped_folders() <= before, 90, "the trial over there to end")
    assert not Path("/run/seatrial", data.run.run).exists()
    assert not Path("/var/lib/seatrial", data.run.run).exists()


def test_a_trial_here_ends_with_its_campaign(tmp_path: Path, server: Server) -> None:
    with campaign(tmp_path, server, "--machine", "local", "--quick", "oci:crun") as process:
        wait_for_records(tmp_path, "local")
        process.signal(signal.SIGKILL)
    run = runs(tmp_path)["local"].run
    assert not run.ended
    wait_until(lambda: not Path("/run/seatrial", run.run).exists(), 90, "the trial to end")
    assert not Path("/var/lib/seatrial", run.run).exists()
    assert [path.name for path in (tmp_path / "results").iterdir() if not path.name.startswith(".")] == [run.run]
    assert server.connections == []


def test_a_machine_that_cannot_be_reached_is_an_error_of_its_own(tmp_path: Path, server: Server) -> None:
    with campaign(
        tmp_path, server, "--machine", "ssh://root@127.0.0.1:1", "--quick", "oci:crun", "--", "-k", "order"
    ) as process:
        assert process.wait(240) == 1, told(tmp_path)
    found = runs(tmp_path)
    assert "cannot be reached" in found["ssh://root@127.0.0.1:1"].run.machine["fault"]
    assert "fault" not in found[server.name].run.machine


@pytest.mark.parametrize("words", [("--machine", "trixy"), ("--machine", "ssh://")])
def test_names_that_are_none_are_refused_before_anything_is_done(
    tmp_path: Path, server: Server, words: tuple[str, ...]
) -> None:
    with campaign(tmp_path, server, *words, "oci:crun") as process:
        assert process.wait(60) == 2
    assert "trixie" in told(tmp_path) or "ssh://user@host" in told(tmp_path)
    assert not (tmp_path / "results").exists()
    assert server.connections == []


def test_a_machine_that_is_not_as_defined_is_not_tried(server: Server) -> None:
    mode = read_layout().mode
    other = next(row for row in read_definitions().values() if row.cgroup is not mode and row.recipe)
    with (
        Link(server.address, server.name) as link,
        shipped(link, {}, print) as (place, interpreter),
        pytest.raises(MachineError, match="test_cgroup_mode_is_the_one_that_was_asked_for"),
    ):
        check_machine(link, place, interpreter, other)


@pytest.mark.parametrize("answer", ["", "no", '{"a": 1}', '[3, 11, "x86_64"]'])
def test_no_python(answer: str) -> None:
    with pytest.raises(MachineError, match="install python3"):
        parse_interpreter(answer, "far")


def test_old_python() -> None:
    with pytest.raises(MachineError, match=r"has Python 3\.9, and Seatrial needs 3\.11"):
        parse_interpreter('[3, 9, "x86_64", "/usr/bin/python3.9"]', "far")


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_trial_that_did_not_end_broke_off_whatever_its_status(tmp_path: Path, status: int) -> None:
    run = {"run": "r1", "seatrial": "0", "command": [], "seed": 1, "quick": True, "started": ""}
    words = f"echo '{json.dumps({'run': run})}'; echo no scratch folder >&2; exit {status}"
    folder = hold(LocalShore(), ("sh", "-c", words), tmp_path, {}, lambda line: None, NEVER)
    assert read_folder(folder).run.machine["fault"] == f"the trial broke off with status {status}: no scratch folder"


def test_a_trial_that_ended_has_no_fault(tmp_path: Path) -> None:
    run = {"run": "r1", "seatrial": "0", "command": [], "seed": 1, "quick": True, "started": "", "ended": "now"}
    words = f"echo '{json.dumps({'run': run})}'; exit 1"
    folder = hold(LocalShore(), ("sh", "-c", words), tmp_path, {}, lambda line: None, NEVER)
    assert "fault" not in read_folder(folder).run.machine


def test_lines_that_are_none_of_a_run_are_passed_over(tmp_path: Path) -> None:
    run = {
        "run": "r1",
        "seatrial": "0",
        "command": [],
        "seed": 1,
        "quick": True,
        "started": "",
        "machine": {"kernel": "6"},
    }
    record = {
        "subject": "oci:runc",
        "test": "t",
        "outcome": "fail",
        "reason": "broke\nreproduce: seatrial run oci:runc -- -k t",
    }
    log = Log(tmp_path, {"name": "far"}, lambda line: line.replace("run ", "run --machine far "), lambda line: None)
    for line in (
        "Welcome!",
        "",
        "[1]",
        '{"record": 1}',
        json.dumps({"pid": 7}),
        json.dumps({"run": run}),
        '{"record": {"subj',
    ):
        log.take(line)
    log.take(json.dumps({"record": record}))
    log.close("it died")
    assert log.pid == 7 and log.folder is not None
    data = log.folder.read()
    assert data.run.machine == {"kernel": "6", "name": "far", "fault": "it died"}
    assert [kept.reason for kept in data.records] == ["broke\nreproduce: seatrial run --machine far oci:runc -- -k t"]
