"""Containers: what is run, as whom, and what is said of it (cri-api v1, ``ContainerConfig``, ``ContainerStatus``)."""

from __future__ import annotations

import os
import re
import signal
import stat
import time
from typing import Any

import pytest

from harness.errors import NotFound, RuntimeRefusal
from harness.linux.mounts import read_mounts
from harness.model.area import Area
from harness.session.breach import accepts, answers, drops, pretends, puts, swaps
from harness.session.cri import CREATED, EXITED, READY, RUNNING, CriTrial, secured

pytestmark = pytest.mark.operation(Area.CONTAINERS)

HARBOUR, NUMBERED = "seatrial/harbour:1", "seatrial/numbered:1"
HANGUP = 8
"""runtime.v1.Signal: SIGHUP"""
LABELS = {"app": "harbour", "example.com/tier": "deep"}
NOTES = {"example.com/note": 'any text: "quoted", ünïcode,\nlines', "empty": ""}


# What is run


@pytest.mark.parametrize(
    ("command", "args", "printed"),
    [
        pytest.param(None, None, "entry cmd", id="image"),
        pytest.param(None, ["a b", "c"], "entry a b c", id="args"),
        pytest.param(["/bin/echo", "mine"], None, "mine", id="command"),
        pytest.param(["/bin/echo", "mine"], ["a b", "$X"], "mine a b $X", id="both"),
    ],
)
@pytest.mark.breach(
    swaps(
        "CreateContainer",
        lambda request, call: call(
            {**request, "config": {**request["config"], "command": ["/bin/echo"], "args": ["another", "word"]}}
        ),
    )
)
def test_command_and_args(command: list[str] | None, args: list[str] | None, printed: str, cri: CriTrial) -> None:
    """command: "i.e., entrypoint for docker", args: "i.e., command for docker"; what is not given is the image's."""
    more = {"args": args} if args else {}
    box = cri.launch(command, image=HARBOUR, working_dir="/", **more)
    assert cri.ended(box).text == f"{printed}\n"


@pytest.mark.breach(drops("CreateContainer.config.envs"))
def test_environment(cri: CriTrial) -> None:
    """Envs on top of the image's own; a value may be empty or have any character."""
    wanted = {"CARGO": "deep water = good\t$HOME", "EMPTY": "", "TIDE": "high"}
    envs = [{"key": key, "value": value} for key, value in wanted.items()]
    script = 'echo "[$CARGO][$EMPTY][$TIDE][$HARBOUR]"; env | grep -c ^TIDE='
    ran = cri.run(script, image=HARBOUR, envs=envs)
    assert ran.lines == ["[deep water = good\t$HOME][][high][deep]", "1"]


@pytest.mark.breach(puts("CreateContainer.config.envs", [{"key": "PATH", "value": "/none"}]))
def test_program_is_searched_in_path(cri: CriTrial) -> None:
    """A command without a slash is found by the PATH of the container."""
    assert cri.run("echo", "found").lines == ["found"]


@pytest.mark.parametrize(
    ("wanted", "found"), [(None, "/home/sailor"), ("/var/run", "/var/run"), ("/no/such/folder", "/no/such/folder")]
)
@pytest.mark.breach(puts("CreateContainer.config.working_dir", "/bin"))
def test_working_directory(wanted: str | None, found: str, cri: CriTrial) -> None:
    """working_dir: "Current working directory of the command"; the image's by default, made where it is missing."""
    more = {"working_dir": wanted} if wanted else {}
    script = "pwd" if wanted != "/no/such/folder" else "/bin/pwd"
    assert cri.run(script, image=HARBOUR, linux=secured(run_as_user={"value": 0}), **more).lines == [found]


@pytest.mark.breach(answers("ContainerStatus.status.state", RUNNING))
def test_create_starts_nothing(cri: CriTrial) -> None:
    """CreateContainer "creates a new container", StartContainer "starts the container"."""
    box = cri.create()
    assert cri.status(box).state == CREATED
    assert not cri.processes(box)


@pytest.mark.breach(accepts("CreateContainer", "StartContainer"))
def test_missing_program_is_an_error(cri: CriTrial) -> None:
    """Of CreateContainer or StartContainer, and no process is left."""
    with pytest.raises(RuntimeRefusal):
        cri.launch(["/no/such/program"])


@pytest.mark.breach(accepts("CreateContainer"))
def test_unknown_image_is_refused(cri: CriTrial) -> None:
    """ContainerConfig.image: "Image to use"; CreateContainer pulls nothing."""
    with pytest.raises(RuntimeRefusal):
        cri.create_from(cri.shared_pod(), {**cri.config(), "image": {"image": cri.image("seatrial/none:1")}})


@pytest.mark.breach(accepts("CreateContainer"))
def test_unknown_pod_is_refused(cri: CriTrial) -> None:
    """CreateContainerRequest.pod_sandbox_id: "ID of the PodSandbox in which the container should be created"."""
    pod = cri.shared_pod()
    with pytest.raises(NotFound):
        cri.call("CreateContainer", pod_sandbox_id="no-such-pod", config=cri.config(), sandbox_config=pod.config)


@pytest.mark.breach(puts("CreateContainer.config.metadata.attempt", 7))
def test_name_and_attempt_are_taken_once(cri: CriTrial) -> None:
    """ContainerMetadata: "(name, attempt) is unique within a sandbox for the entire lifetime of the sandbox"."""
    box = cri.create()
    again = {**box.config, "metadata": {**box.config["metadata"], "attempt": 1}}
    assert cri.create_from(box.pod, again).id != box.id
    with pytest.raises(RuntimeRefusal):
        cri.create_from(box.pod, box.config)


@pytest.mark.breach(accepts("StartContainer"))
def test_start_of_what_runs_or_ended_is_refused(cri: CriTrial) -> None:
    """A container is started once; kubelet makes a new attempt for the next."""
    running, ended = cri.launch(), cri.run("true").box
    for box in (running, ended):
        with pytest.raises(RuntimeRefusal):
            cri.start(box)
    assert cri.status(running).state == RUNNING


@pytest.mark.breach(drops("CreateContainer.config.tty"))
def test_terminal(cri: CriTrial) -> None:
    """tty: the container's own terminal, on all three."""
    ran = cri.run("tty; test -t 0 && test -t 1 && test -t 2 && echo all; echo $TERM", tty=True)
    assert ran.lines == ["/dev/pts/0", "all", "xterm"]
    assert cri.run("test -t 1 || echo none").lines == ["none"]


@pytest.mark.breach(puts("CreateContainer.config.stdin", True))
def test_without_stdin_there_is_nothing_to_read(cri: CriTrial) -> None:
    """stdin: false: reading ends at once."""
    assert cri.run("cat; echo over").lines == ["over"]


@pytest.mark.breach(answers("ContainerStatus.status.state", EXITED))
def test_usual_file_systems_and_devices_are_there(cri: CriTrial) -> None:
    """runtime-spec, config-linux, "Default Filesystems" and "Default Devices"."""
    box = cri.launch()
    assert cri.status(box).state == RUNNING
    mounts = {mount.target: mount for mount in read_mounts(cri.init(box))}
    kinds = {target: mount.fstype for target, mount in mounts.items()}
    assert (kinds["/proc"], kinds["/sys"], kinds["/dev/pts"], kinds["/dev/shm"], kinds["/dev"]) == (
        *("proc", "sysfs", "devpts", "tmpfs", "tmpfs"),
    )
    assert kinds["/dev/mqueue"] == "mqueue"
    listed = set(cri.said(box, "ls /dev").split())
    assert {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "stdin", "stdout", "stderr", "fd"} <= listed
    assert cri.execute(box, "touch /sys/x").exit_code != 0


@pytest.mark.breach(drops("CreateContainer.config.devices"))
def test_device_of_the_host(cri: CriTrial) -> None:
    """Device: host_path, under another name inside."""
    device = {"host_path": "/dev/zero", "container_path": "/dev/cargo", "permissions": "rwm"}
    assert cri.run("head -c 4 /dev/cargo | od -An -tx1", devices=[device]).text.split() == ["00"] * 4


@pytest.mark.breach(puts("CreateContainer.config.devices.0.permissions", "rwm"))
def test_permissions_of_a_device(cri: CriTrial) -> None:
    """Device.permissions: "Cgroups permissions of the device": what is not named is refused by the kernel."""
    node = cri.trial.arena.root / "harbour-device"
    node.unlink(missing_ok=True)
    os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(10, 237))  # /dev/loop-control: of no container by itself
    box = cri.launch(devices=[{"host_path": str(node), "container_path": "/dev/cargo", "permissions": "r"}])
    assert cri.execute(box, "exec 3</dev/cargo").exit_code == 0
    assert cri.execute(box, "exec 3>>/dev/cargo").exit_code != 0


@pytest.mark.breach(accepts("CreateContainer", "StartContainer"))
def test_missing_device_is_refused(cri: CriTrial) -> None:
    with pytest.raises(RuntimeRefusal):
        cri.launch(devices=[{"host_path": "/dev/no-such", "container_path": "/dev/x", "permissions": "rwm"}])


# As whom


def identity_of(cri: CriTrial, image: str = "seatrial/busybox:1", **context: Any) -> str:
    script = "echo $(id -u) $(id -g) $(grep ^Groups: /proc/self/status | cut -f2)"
    return cri.run(script, image=image, working_dir="/", linux=secured(**context)).text.strip()


def number(value: int) -> dict[str, int]:
    return {"value": value}


@pytest.mark.parametrize(
    ("context", "found"),
    [
        pytest.param({"run_as_user": number(1000)}, ("1000", "1000"), id="uid-in-passwd"),
        pytest.param({"run_as_user": number(4321)}, ("4321", "0"), id="uid-unknown"),
        pytest.param({"run_as_username": "sailor"}, ("1000", "1000"), id="name"),
        pytest.param({"run_as_user": number(1000), "run_as_group": number(77)}, ("1000", "77"), id="uid-and-gid"),
        pytest.param({"run_as_username": "sailor", "run_as_group": number(77)}, ("1000", "77"), id="name-and-gid"),
        pytest.param({"run_as_user": number(0)}, ("0", "0"), id="root"),
    ],
)
@pytest.mark.breach(
    swaps("CreateContainer", lambda request, call: call(_as_somebody_else(request))),
)
def test_user_of_the_request(context: dict[str, Any], found: tuple[str, str], cri: CriTrial) -> None:
    """run_as_user, run_as_username ("resolved there by the runtime"), run_as_group."""
    assert tuple(identity_of(cri, **context).split()[:2]) == found


def _as_somebody_else(request: dict[str, Any]) -> dict[str, Any]:
    context = request["config"]["linux"]["security_context"]
    context.pop("run_as_username", None)
    return {
        **request,
        "config": {
            **request["config"],
            "linux": {"security_context": {**context, "run_as_user": {"value": 99}, "run_as_group": {"value": 98}}},
        },
    }


@pytest.mark.parametrize(("image", "found"), [(HARBOUR, ("1000", "1000")), (NUMBERED, ("1001", "2000"))])
@pytest.mark.breach(puts("CreateContainer.config.linux.security_context.run_as_user", {"value": 0}))
def test_user_of_the_image(image: str, found: tuple[str, str], cri: CriTrial) -> None:
    """Image.uid and username: "used as a default if no user is specified when creating the container"."""
    assert tuple(identity_of(cri, image).split()[:2]) == found


@pytest.mark.breach(puts("CreateContainer.config.linux.security_context.run_as_username", "sailor"))
def test_unknown_user_name_is_refused(cri: CriTrial) -> None:
    """run_as_username: "the user MUST exist in the container image [...]; otherwise, the runtime MUST error"."""
    with pytest.raises(RuntimeRefusal):
        cri.launch(linux=secured(run_as_username="nobody-of-the-kind"))


@pytest.mark.breach(drops("CreateContainer.config.linux.security_context.run_as_group"))
def test_group_without_a_user_is_refused(cri: CriTrial) -> None:
    """run_as_group "should only be specified when run_as_user or run_as_username is specified; otherwise [...] MUST error"."""
    with pytest.raises(RuntimeRefusal):
        cri.launch(linux=secured(run_as_group=number(1000)))


def groups_of(said: str) -> set[str]:
    return set(said.split()[2:])


@pytest.mark.breach(drops("CreateContainer.config.linux.security_context.supplemental_groups"))
def test_supplemental_groups(cri: CriTrial) -> None:
    """supplemental_groups: "List of groups applied to the first process run in each container"."""
    assert {"3000", "3001"} <= groups_of(identity_of(cri, run_as_user=number(1000), supplemental_groups=[3000, 3001]))


@pytest.mark.breach(
    puts("CreateContainer.config.linux.security_context.run_as_user", {"value": 4321}),
    drops("CreateContainer.config.linux.security_context.run_as_username"),
)
def test_groups_of_the_image_are_merged(cri: CriTrial) -> None:
    """SupplementalGroupsPolicy.Merge, the default: with "the primary user's groups as defined in the container image"."""
    assert {"2000", "3000"} <= groups_of(identity_of(cri, run_as_username="sailor", supplemental_groups=[3000]))


@pytest.mark.breach(drops("CreateContainer.config.linux.security_context.supplemental_groups_policy"))
def test_groups_of_the_image_are_left_out(cri: CriTrial) -> None:
    """SupplementalGroupsPolicy.Strict: the given groups "instead of any groups defined in the container image"."""
    cri.needs_feature("supplemental_groups_policy")
    strict = {"supplemental_groups": [3000], "supplemental_groups_policy": 1}
    assert groups_of(identity_of(cri, run_as_user=number(1000), **strict)) == {"1000", "3000"} or groups_of(
        identity_of(cri, run_as_user=number(1000), **strict)
    ) == {"3000"}


@pytest.mark.breach(answers("ContainerStatus.status.user"))
def test_status_has_the_user(cri: CriTrial) -> None:
    """ContainerStatus.user: "User identities initially attached to the container"."""
    cri.needs_feature("supplemental_groups_policy")
    box = cri.launch(linux=secured(run_as_user=number(1000), supplemental_groups=[3000]))
    found = cri.status(box).user.linux
    assert (found.uid, found.gid) == (1000, 1000)
    assert 3000 in found.supplemental_groups


# What is said of it


@pytest.mark.breach(drops("CreateContainer.config.labels", "CreateContainer.config.annotations"))
def test_labels_and_annotations(cri: CriTrial) -> None:
    """Annotations "MUST NOT be altered by the runtime", in the status and in the list."""
    box = cri.create(labels=LABELS, annotations=NOTES)
    (listed,) = cri.call("ListContainers", filter={"id": box.id}).containers
    for found in (cri.status(box), listed):
        assert dict(found.labels) == LABELS
        assert dict(found.annotations) == NOTES


@pytest.mark.breach(answers("ContainerStatus.status.started_at", 0))
def test_status_follows_the_life_of_a_container(cri: CriTrial) -> None:
    """ContainerState, and created_at, started_at and finished_at "in nanoseconds"."""
    before = time.time_ns()
    box = cri.create(["/bin/sh", "-c", "read line; exit 0"], stdin=True)
    created = cri.status(box)
    assert (created.state, created.started_at, created.finished_at) == (CREATED, 0, 0)
    cri.start(box)
    running = cri.status(box)
    assert (running.state, running.finished_at) == (RUNNING, 0)
    cri.stop(box)
    ended = cri.status(box)
    assert ended.state == EXITED
    assert before <= created.created_at <= running.started_at <= ended.finished_at <= time.time_ns()
    assert (ended.created_at, ended.started_at) == (created.created_at, running.started_at)


@pytest.mark.breach(answers("ContainerStatus.status.image_ref"))
def test_status_describes_the_container(cri: CriTrial) -> None:
    """metadata, image, image_ref ("Digested reference to the image in use") and log_path, as in the list."""
    box = cri.create()
    status = cri.status(box)
    (listed,) = cri.call("ListContainers", filter={"id": box.id}).containers
    known = cri.call("ImageStatus", image={"image": box.config["image"]["image"]}).image
    assert (status.id, status.metadata.name, status.metadata.attempt) == (box.id, box.name, 0)
    assert status.image.image == box.config["image"]["image"] or status.image.image in known.repo_tags
    assert status.log_path == str(box.log)
    assert (listed.pod_sandbox_id, listed.metadata.name, listed.state) == (box.pod.id, box.name, CREATED)
    assert listed.created_at == status.created_at
    for found in (status.image_ref, listed.image_ref):
        assert found in (known.id, *known.repo_digests)


@pytest.mark.breach(answers("ContainerStatus.status.image_id"))
def test_status_has_the_id_of_the_image(cri: CriTrial) -> None:
    """image_id "should always refer to a unique image identifier on the node"."""
    cri.since("1.33")
    box = cri.create()
    known = cri.call("ImageStatus", image={"image": box.config["image"]["image"]}).image
    assert cri.status(box).image_id == known.id


@pytest.mark.parametrize("code", [0, 1, 42, 127, 255])
@pytest.mark.breach(answers("ContainerStatus.status.exit_code", 99))
def test_exit_code(code: int, cri: CriTrial) -> None:
    """exit_code: with a reason that is a "Brief CamelCase string"."""
    status = cri.run(f"exit {code}").status
    assert status.exit_code == code
    assert re.fullmatch(r"([A-Z][a-z0-9]*)+", status.reason), status.reason


@pytest.mark.breach(answers("ContainerStatus.status.exit_code", 9))
def test_exit_code_after_a_signal(cri: CriTrial) -> None:
    """128 and the number of the signal, as clients expect."""
    box = cri.launch()
    os.kill(cri.init(box), signal.SIGKILL)
    assert cri.await_exit(box).exit_code == 137


@pytest.mark.breach(accepts("ContainerStatus"))
def test_status_of_an_unknown_container_is_an_error(cri: CriTrial) -> None:
    """ContainerStatus: "If the container is not present, returns an error"; clients look for NotFound."""
    with pytest.raises(NotFound):
        cri.call("ContainerStatus", container_id="no-such-container")


@pytest.mark.breach(drops("ContainerStatus.verbose"))
def test_verbose_status_has_more(cri: CriTrial) -> None:
    """ContainerStatusResponse.info "should only be returned non-empty when Verbose is true"."""
    box = cri.create()
    assert dict(cri.call("ContainerStatus", container_id=box.id, verbose=True).info)
    assert not dict(cri.call("ContainerStatus", container_id=box.id).info)


@pytest.mark.breach(drops("ListContainers.filter"))
def test_list_is_filtered(cri: CriTrial) -> None:
    """ContainerFilter: id, state, pod and labels "are combined with 'AND'"."""
    pod, label = cri.pod(), {"berth": cri.trial.name("label")}
    created, running = cri.create(pod=pod, labels=label), cri.launch(pod=pod)
    elsewhere = cri.create(labels=label)

    def listed(**filter: Any) -> set[str]:
        return {box.id for box in cri.call("ListContainers", filter=filter).containers}

    assert {created.id, running.id, elsewhere.id} <= listed()
    assert listed(pod_sandbox_id=pod.id) == {created.id, running.id}
    assert listed(pod_sandbox_id=pod.id, state={"state": RUNNING}) == {running.id}
    assert listed(label_selector=label) == {created.id, elsewhere.id}
    assert listed(label_selector=label, pod_sandbox_id=pod.id) == {created.id}
    assert listed(id=running.id, state={"state": CREATED}) == set()
    assert listed(id=running.id) == {running.id}


# How it ends

TRAPS = "trap 'echo TERM; exit 7' TERM; trap 'echo USR1; exit 8' USR1; trap 'echo HUP; exit 9' HUP; echo ready; sleep 3600 & wait"


@pytest.mark.breach(puts("StopContainer.timeout", 0))
def test_stop_asks_first(cri: CriTrial) -> None:
    """StopContainer "stops a running container with a grace period": SIGTERM, and the program's own exit code."""
    box = cri.launch(["/bin/sh", "-c", TRAPS])
    cri.await_line(box, "ready")
    cri.stop(box, timeout=10)
    ran = cri.ended(box)
    assert ran.lines == ["ready", "TERM"]
    assert ran.status.exit_code == 7


@pytest.mark.breach(pretends("StopContainer"))
def test_stop_kills_after_the_grace(cri: CriTrial) -> None:
    """StopContainer: "must forcibly kill the container after the grace period is reached"."""
    box = cri.launch(["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])
    cri.await_line(box, "ready")
    cri.stop(box, timeout=1)
    assert cri.status(box).exit_code == 137
    assert not cri.processes(box)


@pytest.mark.breach(pretends("StopContainer"))
def test_stop_without_a_grace_kills_at_once(cri: CriTrial) -> None:
    """StopContainerRequest.timeout "Default: 0 (forcibly terminate the container immediately)"."""
    box = cri.launch(["/bin/sh", "-c", TRAPS])
    cri.await_line(box, "ready")
    cri.stop(box)
    ran = cri.ended(box)
    assert (ran.lines, ran.status.exit_code) == (["ready"], 137)


@pytest.mark.breach(swaps("CreateContainer", lambda request, call: call(_of_another_image(request))))
def test_stop_signal_of_the_image(cri: CriTrial) -> None:
    """image-spec, config.StopSignal."""
    box = cri.launch(["/bin/sh", "-c", TRAPS], image=HARBOUR, working_dir="/")
    cri.await_line(box, "ready")
    cri.stop(box, timeout=10)
    ran = cri.ended(box)
    assert (ran.lines, ran.status.exit_code) == (["ready", "USR1"], 8)


def _of_another_image(request: dict[str, Any]) -> dict[str, Any]:
    reference = request["config"]["image"]["image"].replace("harbour", "busybox")
    return {**request, "config": {**request["config"], "image": {"image": reference}}}


@pytest.mark.breach(drops("CreateContainer.config.stop_signal"))
def test_stop_signal_of_the_request(cri: CriTrial) -> None:
    """ContainerConfig.stop_signal, and the same in the status."""
    cri.since("1.33")
    box = cri.launch(["/bin/sh", "-c", TRAPS], stop_signal=HANGUP)
    cri.await_line(box, "ready")
    assert cri.status(box).stop_signal == HANGUP
    cri.stop(box, timeout=10)
    ran = cri.ended(box)
    assert (ran.lines, ran.status.exit_code) == (["ready", "HUP"], 9)


@pytest.mark.breach(pretends("RemoveContainer"))
def test_removal_of_a_running_container(cri: CriTrial) -> None:
    """RemoveContainer: "If the container is running, the container must be forcibly removed"."""
    box = cri.launch()
    processes = cri.family(box)
    cri.remove(box)
    with pytest.raises(NotFound):
        cri.status(box)
    assert not any(process.alive for process in processes)
    assert cri.pod_status(box.pod).state == READY


@pytest.mark.breach(answers("ContainerStatus.status.state", RUNNING))
def test_background_processes_end_with_the_container(cri: CriTrial) -> None:
    """The processes of a PID namespace end with its init (pid_namespaces(7))."""
    box = cri.launch(["/bin/sh", "-c", "setsid sleep 3600 & setsid sleep 3600 & echo ready; read line"], stdin=True)
    cri.await_line(box, "ready")
    # In the middle of an exec a process has no environment to know it by.
    processes = cri.wait(lambda: (found := cri.family(box))[2:] and found, "its three processes")
    cri.stop(box)
    assert cri.status(box).state == EXITED
    cri.wait(lambda: not any(process.alive for process in processes), "every process to end")
