"""Virtual machines for real: brought up, tried, killed, interrupted. Serial, and in this order; `make machines` runs it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import paths
from harness.clock import wait_until
from harness.command import Completed, HostProcess, HostRunner
from harness.errors import MachineError
from harness.fleet.box import build_box, cache, find_box
from harness.fleet.definition import read_definitions
from harness.fleet.machine import bring_up, find_machine, reserved
from harness.fleet.place import URI, Private, Service, find_place, open_place
from harness.keeper import runs
from harness.model.record import Outcome
from harness.store import RunData, read_folder

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="machines need private networks and disks, hence root"),
]

NAME = "trixie"
SEATRIAL = [sys.executable, "-m", "harness.cli"]


def seatrial(*words: str, timeout_s: float = 300) -> Completed:
    return HostRunner().run([*SEATRIAL, *words], timeout_s=timeout_s)


@contextlib.contextmanager
def running(tmp_path: Path, *words: str) -> Iterator[HostProcess]:
    """A command in the background, its output in ``out`` and ``err``."""
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        process = HostRunner().start([*SEATRIAL, *words], stdout_fd=out.fileno(), stderr_fd=err.fileno())
        try:
            yield process
        finally:
            process.stop(60)


def told(tmp_path: Path) -> str:
    return (tmp_path / "out").read_text() + (tmp_path / "err").read_text()


def results(tmp_path: Path) -> RunData:
    (path,) = (tmp_path / "results").glob("*/run.json")
    return read_folder(path.parent)


def hypervisors() -> dict[int, str]:
    """Processes that belong to a machine: QEMU, libvirt, its name server, ssh to it."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if any(word in words for word in (f"vagrant_{NAME}", f"vm-{NAME}", "libvirtd", "harness.fleet.berth")):
                found[int(folder.name)] = words
    return found


def qemu() -> int:
    """The process of the machine."""
    (pid,) = [pid for pid, words in hypervisors().items() if "qemu-system" in words.split()[0]]
    return pid


def links() -> set[Path]:
    """Sockets of links to machines."""
    return set(Path("/tmp").glob("seatrial-*"))


BEFORE = links()
"""Those are not ours: a trial on another host, or of a computer that went down."""


def assert_nothing_is_left() -> None:
    assert find_machine(read_definitions()[NAME]) is None
    assert not Path(runs.STATE, f"vm-{NAME}").exists()
    assert not Path(runs.DATA, f"vm-{NAME}").exists()
    assert hypervisors() == {}
    assert links() <= BEFORE
    assert not list(Path("/sys/fs/cgroup").glob("*/seatrial/vm-*"))


@pytest.fixture(scope="module", autouse=True)
def box() -> None:
    """The box is in the cache, as it is after the first time."""
    recipe = read_definitions()[NAME].recipe
    assert recipe is not None
    build_box(recipe, print)


@pytest.fixture(scope="module")
def machine(box: None) -> Iterator[None]:
    """The machine, up for the tests that follow."""
    done = seatrial("vm", "up", NAME, timeout_s=600)
    assert done.status == 0, done.stderr.decode()
    yield
    seatrial("vm", "destroy", NAME)
    assert_nothing_is_left()


def test_the_box_is_what_it_says() -> None:
    recipe = read_definitions()[NAME].recipe
    assert recipe is not None
    found = find_box(recipe)
    assert found is not None
    facts = json.loads(found.path.with_suffix(".json").read_bytes())
    names = {line.split()[0] for line in facts["packages"]}
    assert {"containerd", "runc", "crun", "docker.io", "podman", "systemd", "python3-minimal"} <= names
    assert (cache() / "boxes" / f"{NAME}.box").resolve() == found.path


def test_a_place_that_was_left_half_made_is_taken_down_first() -> None:
    left = Private.make(NAME)
    place = open_place(NAME)
    assert isinstance(place, Private)
    assert place.pid != left.pid
    assert left.pid not in hypervisors()
    for berth in (place, left):
        berth.leave()
    assert_nothing_is_left()


@pytest.fixture
def host() -> Iterator[Private]:
    """A berth that stands for a computer: what runs inside finds its libvirtd in the usual place."""
    berth = Private.make("host")
    try:
        yield berth
    finally:
        berth.leave()
    assert_nothing_is_left()


def test_a_libvirtd_of_the_computer_is_used_and_left_as_it_was(host: Private) -> None:
    def inside(*argv: str) -> str:
        return HostRunner().run(host.wrap(argv), timeout_s=300).check().text

    def virsh(*words: str) -> list[str]:
        return inside("virsh", "--quiet", "--connect", URI, *words).split()

    def destroy() -> None:
        inside(*SEATRIAL, "vm", "destroy", NAME)
        assert find_place(NAME) is None

    inside(*SEATRIAL, "vm", "up", NAME)
    assert isinstance(find_place(NAME), Service)
    assert virsh("list", "--all", "--name") == [f"vagrant_{NAME}"]
    assert inside(*SEATRIAL, "vm", "ssh", NAME, "--", "uname", "-n") == "seatrial\n"
    destroy()
    assert virsh("list", "--all", "--name") == []
    assert virsh("vol-list", "default") == []

    # The copy of a box on which somebody's own disk builds.
    base, disk = f"seatrial-VAGRANTSLASH-{NAME}-0_box.img", "own.img"
    virsh("vol-create-as", "default", base, "1M", "--format", "qcow2")
    virsh(
        *("vol-create-as", "default", disk, "1M", "--format", "qcow2"),
        *("--backing-vol", base, "--backing-vol-format", "qcow2"),
    )
    for volumes in ({base, disk}, set()):
        # What an "up" that was killed leaves.
        Service(NAME).folder.mkdir(parents=True)
        destroy()
        assert {word for word in virsh("vol-list", "default") if "/" not in word} == volumes
        if volumes:
            virsh("vol-delete", "--pool", "default", disk)


def test_a_machine_that_never_boots_shows_its_console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "vagrant"
    HostRunner().run(("cp", "-r", str(paths.vagrant()), str(own)), timeout_s=60).check()
    data: dict[str, Any] = yaml.safe_load((own / "machines.yaml").read_text())
    # The kernel then looks for the disk itself, without the drivers that the initramfs has.
    data["machines"][NAME]["cmdline"] = "rdinit=/nonexistent"
    (own / "machines.yaml").write_text(yaml.safe_dump(data))
    monkeypatch.setenv("SEATRIAL_VAGRANT", str(own))
    with pytest.raises(MachineError, match=r"(?s)did not answer by ssh within 60 s.*end of its console.*Kernel panic"):
        bring_up(read_definitions()[NAME], print, limit_s=60)
    assert_nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_machine_ends_with_whoever_wanted_it(tmp_path: Path, number: int) -> None:
    with running(tmp_path, "vm", "up", NAME) as process:
        wait_until(
            lambda: "Waiting for domain" in told(tmp_path) or process.poll() is not None, 120, "the machine to start"
        )
        assert qemu()
        process.signal(number)
        assert process.wait(60) == (130 if number == signal.SIGINT else -signal.SIGKILL), told(tmp_path)
    wait_until(lambda: not Path(runs.DATA, f"vm-{NAME}").exists() and not hypervisors(), 60, "the berth to end")
    assert_nothing_is_left()


def test_a_machine_has_one_user(machine: None) -> None:
    with reserved(NAME, "a trial is held there"):
        for words in (("vm", "up"), ("vm", "destroy"), ("run", "--machine")):
            done = seatrial(*words, NAME)
            assert f"process {os.getpid()}" in (done.stdout + done.stderr).decode()
            assert done.status != 0
    assert b"up already" in seatrial("vm", "up", NAME).stdout


def test_commands_reach_the_machine(machine: None) -> None:
    done = seatrial("vm", "ssh", NAME, "--", "stat -fc %T /sys/fs/cgroup; exit 7")
    assert (done.status, done.text.strip()) == (7, "cgroup2fs")
    assert NAME in seatrial("vm", "list").text


def test_quick_trial_of_every_subject(machine: None, tmp_path: Path) -> None:
    """All of it on pure cgroup v2, with systemd's own containerd and Docker beside private ones."""
    with running(tmp_path, "run", "--quick", "--machine", NAME, "--output", str(tmp_path / "results")) as process:
        status = process.wait(1500)
    data = results(tmp_path)
    wrong = [
        f"{record.subject} {record.test}: {record.reason}"
        for record in data.records
        if record.outcome in (Outcome.FAIL, Outcome.ERROR)
    ]
    assert (status, wrong) == (0, []), told(tmp_path)
    assert data.run.machine["cgroup_mode"] == "v2"
    assert data.run.machine["systemd"] is True
    assert data.run.machine["accelerator"] in ("kvm", "tcg")
    passed = {
        record.subject for record in data.records if record.outcome is Outcome.PASS and record.phase.value == "measure"
    }
    assert passed == set(read_definitions()[NAME].quick)
    engines = {"containerd:grpc:runc", "systemd-containerd:grpc:runc", "systemd-docker:sdk:runc"}
    counted = {record.subject for record in data.records if record.cpu_ns.engine and record.memory_bytes.engine}
    assert counted >= engines


def test_a_machine_that_dies_keeps_what_came(machine: None, tmp_path: Path) -> None:
    with running(
        tmp_path, "run", "--quick", "--machine", NAME, "--output", str(tmp_path / "results"), "oci:minirt"
    ) as process:
        wait_until(
            lambda: any((tmp_path / "results").glob("*/run.json")) and len(results(tmp_path).records) > 3,
            180,
            "records",
        )
        os.kill(qemu(), signal.SIGKILL)
        assert process.wait(180) == 1, told(tmp_path)
    data = results(tmp_path)
    assert "connection was lost in the middle of the trial\nthe end of its console:" in data.run.machine["fault"]
    assert len(data.records) > 3
    assert "connection was lost" in (tmp_path / "out").read_text()
