"""The operations of a container's life: create, start, kill, delete (runtime.md, "Lifecycle" and "Operations")."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness.client.oci_door import Command
from harness.command import Completed
from harness.model.area import OciArea
from harness.session.oci import SLEEP, OciTrial
from harness.session.oci_box import Box
from harness.session.oci_breach import Call, accepts, follows, pretends, puts, refuses, swallows, swaps

pytestmark = pytest.mark.operation(OciArea.LIFECYCLE)

SAY = ("/bin/sh", "-c", "echo said; exec sleep 3600")
NAG = ("/bin/sh", "-c", "trap 'echo heard' USR1; echo ready; while :; do sleep 0.05; done")


def brought_to(oci: OciTrial, status: str) -> Box:
    """A container in a state."""
    box = oci.create(oci.box(args=SLEEP))
    if status != "created":
        oci.start(box)
    if status == "paused":
        oci.do("pause", box.id)
    return oci.end(box) if status == "stopped" else box


def same(oci: OciTrial, box: Box, status: str) -> None:
    """Check that a container is as it was."""
    assert oci.status(box) == status
    assert oci.alive(box) is (status != "stopped")


# Create


@pytest.mark.breach(follows("create", Command("start", ("ID",))))
def test_create_does_not_run_the_program(oci: OciTrial) -> None:
    """Lifecycle, 2: "the user-specified program (from process) MUST NOT be run at this time"."""
    box = oci.create(oci.box(args=SAY))
    assert oci.alive(box)
    assert b"said" not in Path(f"/proc/{oci.pid(box)}/cmdline").read_bytes()
    assert oci.output(box) == ""
    oci.start(box)
    oci.await_output(box, "said")


@pytest.mark.breach(accepts("create"))
@pytest.mark.parametrize("status", ["created", "running", "stopped"])
def test_create_of_an_id_in_use_is_an_error(oci: OciTrial, status: str) -> None:
    """Create: "If the ID provided is not unique across all containers within the scope of the runtime [...] the
    implementation MUST generate an error and a new container MUST NOT be created".
    """
    box = brought_to(oci, status)
    other = oci.box(args=SAY)
    oci.write(other)
    assert oci.refused("create", "--bundle", str(other.path), box.id)
    same(oci, box, status)
    assert oci.pids(other) == []


@pytest.mark.breach(accepts("create"))
@pytest.mark.parametrize("name", ["", ".", "..", "../escaped", "a/b"], ids=["empty", "dot", "dots", "parent", "slash"])
def test_create_with_an_invalid_id_is_an_error(oci: OciTrial, name: str) -> None:
    """Create: "If the ID provided [...] is not valid in any other way, the implementation MUST generate an error and a new
    container MUST NOT be created": one that would leave the folder of states is valid nowhere.
    """
    box = oci.box(args=SLEEP)
    oci.write(box)
    before = sorted(path.name for path in oci.root.parent.iterdir())
    assert oci.refused("create", "--bundle", str(box.path), name)
    assert oci.pids(box) == []
    assert {path.name for path in oci.root.parent.iterdir()} - {*before, oci.root.name} == set()


@pytest.mark.breach(accepts("create"))
def test_create_without_an_id_is_an_error(oci: OciTrial) -> None:
    """Create: "MUST generate an error if it is not provided a path to the bundle and the container ID"."""
    box = oci.box(args=SLEEP)
    oci.write(box)
    assert oci.attempt("create", "--bundle", str(box.path)).status != 0
    assert oci.pids(box) == []


@pytest.mark.breach(accepts("create"))
def test_create_from_no_bundle_is_an_error(oci: OciTrial) -> None:
    """Create: "MUST generate an error if it is not provided a path to the bundle": one that is there."""
    box = oci.box(args=SLEEP)
    assert oci.refused("create", "--bundle", str(box.path / "nowhere"), box.id)
    assert oci.status(box) == ""


@pytest.mark.breach(accepts("create"))
def test_create_without_a_configuration_is_an_error(oci: OciTrial) -> None:
    """Bundle: "This REQUIRED file MUST reside in the root of the bundle directory and MUST be named config.json"."""
    box = oci.box(args=SLEEP)
    box.set("annotations", {})
    (box.path / "configuration.json").write_text(json.dumps(box.config))
    assert oci.refused("create", "--bundle", str(box.path), box.id)
    assert oci.status(box) == ""


@pytest.mark.breach(refuses("create"))
def test_bundle_is_by_default_the_working_directory(oci: OciTrial) -> None:
    """Command line, create: "--bundle <PATH>: Override the path to the bundle directory (defaults to the current working
    directory)".
    """
    box = oci.box(args=SLEEP)
    oci.write(box)
    done = oci.attempt("create", box.id, under=("/bin/sh", "-c", 'cd "$0" && exec "$@"', str(box.path)))
    assert done.status == 0, done.stderr
    assert oci.state(box)["bundle"] == str(box.path)


@pytest.mark.breach(swallows("create", "--pid-file"))
def test_pid_file_has_the_pid(oci: OciTrial) -> None:
    """Command line, create: "--pid-file <PATH>: The runtime MUST write the container PID to this path"."""
    box = oci.create(oci.box(args=SLEEP))
    assert box.pid_file.exists(), "there is no pid file"
    assert box.pid_file.read_text() == str(oci.state(box)["pid"])


def recreated(command: Command, call: Call) -> Completed:
    """A runtime that reads the configuration only when it starts."""
    name = command.words[-1]
    bundle = json.loads(call(Command("state", (name,))).stdout)["bundle"]
    call(Command("delete", ("--force", name)))
    call(Command("create", ("--bundle", bundle, "--pid-file", f"{bundle}/pid", name)))
    return call(command)


@pytest.mark.breach(swaps("start", recreated))
@pytest.mark.kernel
def test_a_later_change_of_the_configuration_has_no_effect(oci: OciTrial) -> None:
    """Lifecycle, 2: "Any updates to config.json after this step MUST NOT affect the container"."""
    box = oci.create(oci.box({"annotations": {"when": "before"}}, SLEEP))
    box.apply({"process.args": ["/bin/sleep", "7200"], "process.env.+": "LATER=1", "annotations": {"when": "after"}})
    (box.path / "config.json").write_text(json.dumps(box.config))
    oci.start(box)
    oci.wait(lambda: b"/bin/sleep" in Path(f"/proc/{oci.pid(box)}/cmdline").read_bytes(), "the program to run")
    assert oci.proc(box, "cmdline") == "/bin/sleep\x003600\0"
    assert "LATER=1" not in oci.proc(box, "environ")
    assert oci.state(box)["annotations"]["when"] == "before"


@pytest.mark.breach(accepts("create"))
def test_a_container_that_cannot_be_made_leaves_nothing(oci: OciTrial) -> None:
    """Create: "If the runtime cannot apply a property as specified in the configuration, it MUST generate an error and a
    new container MUST NOT be created"; the id is free afterwards.
    """
    box = oci.box({"mounts.+": {"destination": "/x", "type": "no-such-filesystem", "source": "x"}}, SLEEP)
    assert oci.cannot_create(box)
    del box.config["mounts"][-1]
    oci.create(box)
    assert oci.status(box) == "created"


# Start


@pytest.mark.breach(pretends("start"))
def test_start_runs_the_program(oci: OciTrial) -> None:
    """Start: "This operation MUST run the user-specified program as specified by process"."""
    box = oci.create(oci.box(args=SAY))
    oci.start(box)
    oci.await_output(box, "said")


@pytest.mark.breach(accepts("start"))
@pytest.mark.parametrize("status", ["running", "paused", "stopped"])
def test_start_of_what_is_not_created_is_an_error(oci: OciTrial, status: str) -> None:
    """Start: "Attempting to start a container that is not created MUST have no effect on the container and MUST generate
    an error".
    """
    box = brought_to(oci, status)
    assert oci.refused("start", box.id)
    same(oci, box, status)


@pytest.mark.breach(accepts("start"))
def test_start_of_an_unknown_container_is_an_error(oci: OciTrial) -> None:
    """Start: "Attempting to start a container that is not created [...] MUST generate an error"."""
    assert oci.refused("start", "no-such-container")


@pytest.mark.breach(accepts("start"))
def test_start_without_an_id_is_an_error(oci: OciTrial) -> None:
    """Start: "MUST generate an error if it is not provided the container ID"."""
    assert oci.attempt("start").status != 0


@pytest.mark.breach(accepts("create", "start"))
def test_start_without_a_process_is_an_error(oci: OciTrial) -> None:
    """Start: "This operation MUST generate an error if process was not set"; a runtime may refuse it before."""
    box = oci.box()
    del box.config["process"]
    done = oci.try_create(box)
    if done.status == 0:
        assert oci.refused("start", box.id)


# Kill


@pytest.mark.breach(pretends("kill"))
@pytest.mark.parametrize("signal", ["USR1", "SIGUSR1", "10"])
def test_kill_sends_the_signal(oci: OciTrial, signal: str) -> None:
    """Kill: "This operation MUST send the specified signal to the container process"; runc takes names with and without
    SIG, and numbers.
    """
    box = oci.launch(args=NAG)
    oci.await_output(box, "ready")
    oci.kill(box, signal)
    oci.await_output(box, "heard")
    assert oci.alive(box)


@pytest.mark.breach(swaps("kill", lambda command, call: call(replace(command, words=(*command.words, "CONT")))))
def test_kill_sends_sigterm_by_default(oci: OciTrial) -> None:
    """Command line, kill: "<SIGNAL>: The signal to send to the container process. [...] TERM" is the default."""
    box = oci.launch(args=("/bin/sh", "-c", "trap 'echo term; exit' TERM; echo ready; while :; do sleep 0.05; done"))
    oci.await_output(box, "ready")
    oci.kill(box)
    oci.await_output(box, "term")


@pytest.mark.breach(pretends("kill"))
@pytest.mark.parametrize("status", ["created", "running"])
def test_kill_ends_a_container(oci: OciTrial, status: str) -> None:
    """Kill: a container that is "created" or "running" can be sent a signal."""
    box = brought_to(oci, status)
    oci.kill(box, "KILL")
    oci.await_end(box)
    oci.await_status(box, "stopped")


@pytest.mark.breach(pretends("kill"))
def test_kill_ends_a_paused_container(oci: OciTrial) -> None:
    """Kill: SIGKILL reaches a frozen process once the runtime (or the kernel, on v2) lets it."""
    box = brought_to(oci, "paused")
    oci.kill(box, "KILL")
    if oci.alive(box):
        oci.attempt("resume", box.id)
    oci.await_end(box)


@pytest.mark.breach(accepts("kill"))
def test_kill_of_a_stopped_container_is_an_error(oci: OciTrial) -> None:
    """Kill: "Attempting to send a signal to a container that is neither created nor running MUST have no effect on the
    container and MUST generate an error".
    """
    box = brought_to(oci, "stopped")
    assert oci.refused("kill", box.id, "TERM")
    same(oci, box, "stopped")


@pytest.mark.breach(accepts("kill"))
def test_kill_of_an_unknown_container_is_an_error(oci: OciTrial) -> None:
    """Kill: "neither created nor running [...] MUST generate an error"."""
    assert oci.refused("kill", "no-such-container", "TERM")


@pytest.mark.breach(accepts("kill"))
def test_kill_without_an_id_is_an_error(oci: OciTrial) -> None:
    """Kill: "MUST generate an error if it is not provided the container ID"."""
    assert oci.attempt("kill").status != 0


@pytest.mark.breach(accepts("kill"))
@pytest.mark.parametrize("signal", ["NOSUCH", "999"])
def test_kill_with_an_unknown_signal_is_an_error(oci: OciTrial, signal: str) -> None:
    """Kill: it sends "the specified signal" or, Errors, leaves "the state of the environment as if the operation were never
    attempted".
    """
    box = brought_to(oci, "running")
    assert oci.refused("kill", box.id, signal)
    same(oci, box, "running")


@pytest.mark.breach(swallows("kill", "--all", value=False))
@pytest.mark.kernel
def test_kill_all_reaches_every_process(oci: OciTrial) -> None:
    """runc, kill: "--all, -a: send the specified signal to all processes inside the container": without a pid namespace the
    others outlive the first.
    """
    box = oci.box(args=("/bin/sh", "-c", "sleep 3600 & echo ready; wait"))
    box.config["linux"]["namespaces"] = [row for row in box.config["linux"]["namespaces"] if row["type"] != "pid"]
    oci.sail(box)
    oci.await_output(box, "ready")
    oci.wait(lambda: len(oci.pids(box)) == 2, "two processes in the container's cgroup")
    oci.do("kill", "--all", box.id, "KILL")
    oci.wait(lambda: not oci.pids(box), "all processes of the container to end")


# Pause and resume


@pytest.mark.breach(pretends("pause"))
def test_pause_holds_every_process(oci: OciTrial) -> None:
    """runc, pause: "suspends all processes inside the container": the kernel says so, and nothing is printed any more."""
    box = oci.launch(args=("/bin/sh", "-c", "while :; do echo tick; sleep 0.02; done"))
    oci.await_output(box, "tick")
    oci.do("pause", box.id)
    held = len(oci.output(box))
    oci.shell("sleep 0.3")
    assert len(oci.output(box)) == held, "it goes on printing"
    assert oci.status(box) == "paused"


@pytest.mark.breach(pretends("resume"))
def test_resume_lets_go_on(oci: OciTrial) -> None:
    """runc, resume: "resumes all processes that have been previously paused"."""
    box = oci.launch(args=("/bin/sh", "-c", "while :; do echo tick; sleep 0.02; done"))
    oci.do("pause", box.id)
    held = len(oci.output(box))
    oci.do("resume", box.id)
    oci.wait(lambda: len(oci.output(box)) > held + 10, "the container to go on")
    assert oci.status(box) == "running"


@pytest.mark.breach(accepts("pause"))
@pytest.mark.parametrize("status", ["stopped", ""])
def test_pause_of_what_does_not_run_is_an_error(oci: OciTrial, status: str) -> None:
    """Errors: an operation that cannot be done generates one, and changes nothing."""
    name = brought_to(oci, status).id if status else "no-such-container"
    assert oci.refused("pause", name)
    assert oci.status(name) == status


@pytest.mark.breach(accepts("resume"))
@pytest.mark.parametrize("status", ["stopped", ""])
def test_resume_of_what_does_not_run_is_an_error(oci: OciTrial, status: str) -> None:
    """Errors: an operation that cannot be done generates one, and changes nothing."""
    name = brought_to(oci, status).id if status else "no-such-container"
    assert oci.refused("resume", name)
    assert oci.status(name) == status


# Delete


@pytest.mark.breach(accepts("delete"))
@pytest.mark.parametrize("status", ["created", "running", "paused"])
def test_delete_of_what_is_not_stopped_is_an_error(oci: OciTrial, status: str) -> None:
    """Delete: "Attempting to delete a container that is not stopped MUST have no effect on the container and MUST generate
    an error".
    """
    box = brought_to(oci, status)
    assert oci.refused("delete", box.id)
    same(oci, box, status)


@pytest.mark.breach(accepts("delete"))
def test_delete_of_an_unknown_container_is_an_error(oci: OciTrial) -> None:
    """Delete: "a container that is not stopped [...] MUST generate an error"."""
    assert oci.refused("delete", "no-such-container")


@pytest.mark.breach(accepts("delete"))
def test_delete_without_an_id_is_an_error(oci: OciTrial) -> None:
    """Delete: "MUST generate an error if it is not provided the container ID"."""
    assert oci.attempt("delete").status != 0


@pytest.mark.breach(pretends("delete"))
def test_delete_removes_what_create_made(oci: OciTrial) -> None:
    """Delete: "Deleting a container MUST delete the resources that were created during the create step"."""
    box = brought_to(oci, "stopped")
    oci.delete(box)
    assert oci.status(box) == ""
    assert oci.folders(box) == []
    assert not (oci.root / box.id).exists()


def thorough(command: Command, call: Call) -> Completed:
    """A runtime that takes the bundle for its own."""
    bundle = Path(json.loads(call(Command("state", command.words[-1:])).stdout)["bundle"])
    done = call(command)
    (bundle / "rootfs" / "bin" / "true").unlink()
    (bundle / "shared" / "file").unlink()
    return done


@pytest.mark.breach(swaps("delete", thorough))
def test_delete_leaves_what_create_did_not_make(oci: OciTrial) -> None:
    """Delete: "resources associated with the container, but not created by this container, MUST NOT be deleted"."""
    box = oci.box(args=("/bin/true",))
    shared = box.folder("shared")
    (shared / "file").write_text("kept")
    box.set("mounts.+", {"destination": "/shared", "type": "none", "source": str(shared), "options": ["bind"]})
    oci.sail(box)
    oci.await_end(box)
    oci.await_status(box, "stopped")
    oci.delete(box)
    assert (box.rootfs / "bin" / "true").exists()
    assert (shared / "file").exists()
    assert (box.path / "config.json").exists()


@pytest.mark.breach(refuses("create", since=2))
def test_an_id_can_be_used_again(oci: OciTrial) -> None:
    """Delete: "Once a container is deleted its ID MAY be used by a subsequent container"."""
    box = brought_to(oci, "stopped")
    oci.delete(box)
    oci.create(box)
    assert oci.status(box) == "created"


@pytest.mark.breach(pretends("delete"))
@pytest.mark.parametrize("status", ["created", "running", "paused"])
def test_delete_force_ends_a_container(oci: OciTrial, status: str) -> None:
    """runc, delete: "--force, -f: Forcibly deletes the container if it is still running (uses SIGKILL)"."""
    box = brought_to(oci, status)
    pid = oci.pid(box)
    oci.attempt("delete", "--force", box.id)
    assert oci.status(box) == ""
    assert not oci.alive(box), f"process {pid} goes on"
    assert oci.folders(box) == []


@pytest.mark.breach(swallows("delete", "--force", value=False))
def test_delete_force_of_an_unknown_container_is_none(oci: OciTrial) -> None:
    """runc, delete --force: callers remove what may be gone already, and expect status 0."""
    done = oci.attempt("delete", "--force", "no-such-container")
    assert done.status == 0, done.stderr


@pytest.mark.breach(puts("process.args", ["/bin/true"]))
def test_containers_do_not_see_each_other(oci: OciTrial) -> None:
    """State: the id is "unique across all containers on this host": what is done to one leaves the others alone."""
    one, other = oci.launch(args=SLEEP), oci.launch(args=SLEEP)
    oci.end(one)
    oci.delete(one)
    assert oci.status(other) == "running"
    assert oci.alive(other)
