"""The state of a container, and asking for it (runtime.md, "State" and "Query State")."""

from __future__ import annotations

import re

import pytest

from harness.client.oci_door import Command
from harness.model.area import OciArea
from harness.session.oci import SLEEP, OciTrial
from harness.session.oci_breach import accepts, also, answers, drops, says

pytestmark = pytest.mark.operation(OciArea.STATE)

STATUSES = ("created", "running", "stopped")


@pytest.mark.breach(says("state", stdout=b"running\n"))
def test_state_is_json_on_stdout(oci: OciTrial) -> None:
    """State: "When serialized in JSON, the format MUST adhere to the JSON Schema schema/state-schema.json"."""
    box = oci.create(oci.box(args=SLEEP))
    state = oci.state(box)
    kinds = {"ociVersion": str, "id": str, "status": str, "pid": int, "bundle": str}
    assert {key: type(state.get(key)) for key in kinds} == kinds


@pytest.mark.breach(answers("state", "ociVersion", "latest"))
def test_state_has_the_version_of_the_specification(oci: OciTrial) -> None:
    """State: "ociVersion (string, REQUIRED) is version of the Open Container Initiative Runtime Specification with which the
    state complies".
    """
    version = oci.state(oci.create(oci.box(args=SLEEP)))["ociVersion"]
    assert re.fullmatch(r"[1-9]\d*\.\d+\.\d+([-+].+)?", version), version


@pytest.mark.breach(answers("state", "id", "another"))
def test_state_has_the_id(oci: OciTrial) -> None:
    """State: "id (string, REQUIRED) is the container's ID"."""
    box = oci.create(oci.box(args=SLEEP))
    assert oci.state(box)["id"] == box.id


@pytest.mark.breach(answers("state", "bundle", "rootfs"))
def test_state_has_the_absolute_path_of_the_bundle(oci: OciTrial) -> None:
    """State: "bundle (string, REQUIRED) is the absolute path to the container's bundle directory"."""
    box = oci.create(oci.box(args=SLEEP))
    assert oci.state(box)["bundle"] == str(box.path)


@pytest.mark.breach(answers("state", "status", "running"))
def test_status_created(oci: OciTrial) -> None:
    """State: "created: the runtime has finished the create operation, and the container process has neither exited nor executed
    the user-specified program".
    """
    assert oci.state(oci.create(oci.box(args=SLEEP)))["status"] == "created"


@pytest.mark.breach(answers("state", "status", "created"))
def test_status_running(oci: OciTrial) -> None:
    """State: "running: the container process has executed the user-specified program but has not exited"."""
    assert oci.state(oci.launch())["status"] == "running"


@pytest.mark.breach(answers("state", "status", "running"))
def test_status_stopped(oci: OciTrial) -> None:
    """State: "stopped: the container process has exited"."""
    box = oci.launch(args=("/bin/true",))
    oci.await_end(box)
    oci.await_status(box, "stopped")


@pytest.mark.breach(answers("state", "status", "exited"))
def test_status_stopped_after_an_error(oci: OciTrial) -> None:
    """State: "stopped: the container process has exited": whatever its status was."""
    box = oci.launch(args=("/bin/false",))
    oci.await_end(box)
    oci.await_status(box, "stopped")


@pytest.mark.breach(answers("state", "status", "stopped"))
def test_status_paused(oci: OciTrial) -> None:
    """State: "Additional values MAY be defined by the runtime, however, they MUST be used to represent new runtime states not
    defined above": one that is paused is none of the others, and runc calls it "paused".
    """
    box = oci.launch()
    oci.do("pause", box.id)
    assert oci.state(box)["status"] == "paused"
    oci.do("resume", box.id)
    assert oci.state(box)["status"] == "running"


@pytest.mark.breach(answers("state", "pid", 1))
@pytest.mark.parametrize("status", ["created", "running"])
@pytest.mark.kernel
def test_pid_is_the_container_process(oci: OciTrial, status: str) -> None:
    """State: "pid (int, REQUIRED when status is created or running on Linux) is the ID of the container process": as the runtime
    sees it.
    """
    box = oci.create(oci.box(args=SLEEP))
    if status == "running":
        oci.start(box)
    pid = oci.state(box)["pid"]
    assert pid == oci.pid(box)
    assert pid in oci.pids(box)
    assert oci.proc(box, "status").partition("NSpid:")[2].split("\n")[0].split()[-1] == "1"


@pytest.mark.breach(drops("annotations"))
def test_state_has_the_annotations(oci: OciTrial) -> None:
    """State: "annotations (map, OPTIONAL) contains the list of annotations associated with the container"."""
    notes = {"org.example.key": "value", "org.example.empty": "", "org.example.text": 'with "quotes", ünïcode\n'}
    state = oci.state(oci.create(oci.box({"annotations": notes}, SLEEP)))
    assert {key: state.get("annotations", {}).get(key) for key in notes} == notes


@pytest.mark.breach(answers("state", "annotations", {"made": "up"}))
def test_state_without_annotations(oci: OciTrial) -> None:
    """State: "If no annotations were provided then this property MAY either be absent or an empty map"."""
    assert not oci.state(oci.create(oci.box(args=SLEEP))).get("annotations")


@pytest.mark.breach(accepts("state"))
def test_state_of_an_unknown_container_is_an_error(oci: OciTrial) -> None:
    """State: "Attempting to query a container that does not exist MUST generate an error"."""
    assert oci.refused("state", "no-such-container")


@pytest.mark.breach(accepts("state"))
def test_state_without_an_id_is_an_error(oci: OciTrial) -> None:
    """State: "This operation MUST generate an error if it is not provided the ID of a container"."""
    done = oci.attempt("state")
    assert done.status != 0


@pytest.mark.breach(accepts("state"))
def test_state_of_a_deleted_container_is_an_error(oci: OciTrial) -> None:
    """State: "Attempting to query a container that does not exist MUST generate an error": it exists until it is deleted."""
    box = oci.end(oci.launch())
    oci.delete(box)
    assert oci.refused("state", box.id)


@pytest.mark.breach(also("state", Command("kill", ("ID", "KILL"))))
def test_asking_changes_nothing(oci: OciTrial) -> None:
    """State: "This operation MUST return the state of a container": and do no more."""
    box = oci.launch()
    before = oci.state(box)
    assert oci.state(box) == before
    assert oci.alive(box)
