"""Each client's verbs, against a real engine in an arena of its own."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from arena_traces import fresh_run, traces

from harness.client import cri_door_grpc
from harness.client.opening import open_client
from harness.client.verbs import Client, Site
from harness.clock import wait_until
from harness.command import HostRunner
from harness.errors import CallTimeout, Conflict, NotFound, Refused, Unreachable, UsageError
from harness.image.build import write_images
from harness.model.capability import Capability
from harness.model.container import ContainerSpec, Stream
from harness.model.lifecycle import Contract, Operation, State
from harness.model.record import Record
from harness.model.subject import Subject, parse_subject
from harness.session.trial import SPARE_IMAGE, Trial, open_trial

SUBJECTS = (
    "containerd:grpc:runc",
    pytest.param(
        "containerd:crictl:runc",
        marks=pytest.mark.skipif(shutil.which("crictl") is None, reason="crictl is not on PATH: seatrial setup crictl"),
    ),
    "containerd:ctr:runc",
    "docker:sdk:runc",
    "podman:cli:crun",
    "oci:runc",
    "oci:crun",
)


class _Deaf:
    """Takes records, and forgets them."""

    def append(self, record: Record) -> None:
        pass


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "blobs"
    write_images(folder)
    return folder


@pytest.fixture(scope="module", params=SUBJECTS)
def trial(request: pytest.FixtureRequest, blobs: Path) -> Iterator[Trial]:
    """One subject afloat, for all tests of it; nothing of it is left afterwards."""
    run = fresh_run()
    with open_trial(parse_subject(request.param), run, _Deaf(), blobs) as opened:
        yield opened
    assert traces(run) == []


@pytest.fixture
def container(trial: Trial) -> Iterator[str]:
    """A running container."""
    running = trial.launch(trial.spec())
    yield running
    trial.discard(running)


def test_version_names_the_engine(trial: Trial) -> None:
    name, _, number = trial.client.version().partition(" ")
    engine = trial.subject.engine if trial.subject.engine != "none" else trial.subject.handler
    assert name == engine
    assert number.strip("version ")[0].isdigit()


def test_a_container_from_create_to_remove(trial: Trial) -> None:
    client = trial.client
    script = "trap 'echo bye; exit 5' TERM; echo one; echo two >&2; echo \"$SEATRIAL_ID\"; echo ready; sleep 600 & wait"
    spec = trial.spec(("/bin/sh", "-c", script))
    container = trial.create(spec)
    assert client.state(container) is State.CREATED
    client.start(container)
    trial.await_word(container, "ready")
    assert client.state(container) is State.RUNNING
    assert client.exit_code(container) is None
    result = client.exec(container, ("/bin/sh", "-c", "echo out; echo err >&2; exit 42"))
    assert (result.stdout, result.stderr, result.exit_code) == (b"out\n", b"err\n", 42)
    client.pause(container)
    client.resume(container)
    client.stop(container, 10)
    assert client.state(container) is State.STOPPED
    if trial.offers(Capability.EXIT_CODE):
        assert client.exit_code(container) == 5
    lines = client.logs(container)
    assert [line.text for line in lines if line.stream is Stream.STDOUT] == ["one", spec.name, "ready", "bye"]
    assert [line.text for line in lines if line.stream is Stream.STDERR] == ["two"]
    assert all((line.at_ns is not None) == trial.offers(Capability.LOG_TIMESTAMPS) for line in lines)
    client.remove(container)
    assert client.state(container) is State.ABSENT


def _verbs(client: Client) -> dict[str, Callable[[str], object]]:
    return {
        "start": client.start,
        "exec": lambda container: client.exec(container, ("/bin/true",)),
        "pause": client.pause,
        "resume": client.resume,
        "logs": client.logs,
        "exit_code": client.exit_code,
    }


@pytest.mark.parametrize("verb", ["start", "exec", "pause", "resume", "logs"])
def test_an_unknown_container_is_not_found(trial: Trial, verb: str) -> None:
    with pytest.raises(NotFound) as caught:
        _verbs(trial.client)[verb]("seatrial-no-such-container")
    assert caught.value.message


def test_wrong_states_are_conflicts_with_the_runtimes_words(trial: Trial, container: str) -> None:
    with pytest.raises(Conflict) as caught:
        if trial.client.contract is Contract.DOCKER:  # where a second start is none
            trial.client.resume(container)
        else:
            trial.client.start(container)
    assert caught.value.message and caught.value.code
    trial.client.stop(container, 10)
    with pytest.raises(Conflict):
        trial.client.exec(container, ("/bin/true",))


def test_a_name_is_given_once(trial: Trial) -> None:
    spec = trial.spec()
    container = trial.create(spec)
    with pytest.raises(Conflict):
        trial.client.create(spec)
    assert trial.client.state(container) is State.CREATED
    trial.discard(container)


def test_a_failed_create_can_be_tried_again(trial: Trial) -> None:
    """The same name again, once it has been tried with an image that is not there."""
    spec = trial.spec()
    with pytest.raises((NotFound, Refused)):
        trial.client.create(
            ContainerSpec(spec.name, trial.image("seatrial/never:1"), spec.argv, (), spec.network, spec.sandbox)
        )
    assert trial.client.state(spec.name) is State.ABSENT
    trial.discard(trial.create(spec))


def test_exec_has_a_time_limit(trial: Trial, container: str) -> None:
    with pytest.raises(CallTimeout):
        trial.client.exec(container, ("/bin/sleep", "600"), 1)
    assert trial.client.state(container) is State.RUNNING


def test_stop_escalates(trial: Trial) -> None:
    container = trial.launch(trial.spec(("/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done")))
    trial.client.stop(container, 1)
    assert trial.client.state(container) is State.STOPPED
    if trial.offers(Capability.EXIT_CODE):
        assert trial.client.exit_code(container) == 137
    trial.discard(container)


def test_images(trial: Trial) -> None:
    if not trial.offers(Capability.IMAGES):
        with pytest.raises(Refused):
            trial.client.pull(trial.image(SPARE_IMAGE))
        return
    client, image = trial.client, trial.image(SPARE_IMAGE)
    reference = client.pull(image)
    assert reference.startswith("sha256:")
    assert client.has_image(image)
    assert client.pull(image) == reference
    client.remove_image(image)
    assert not client.has_image(image)
    with pytest.raises(NotFound):
        client.pull(trial.image("seatrial/nowhere:1"))
    with pytest.raises(Unreachable):
        client.pull("127.0.0.1:9/seatrial/busybox:1")


def test_sandboxes(trial: Trial) -> None:
    client = trial.client
    if not trial.offers(Capability.SANDBOX):
        assert not client.sandbox_exists("any") and not client.sandbox_ready("any")
        with pytest.raises(Refused):
            client.run_sandbox("pod", trial.spec().network)
        return
    pod = trial.run_sandbox()
    assert client.sandbox_exists(pod) and client.sandbox_ready(pod)
    client.stop_sandbox(pod)
    assert client.sandbox_exists(pod) and not client.sandbox_ready(pod)
    client.remove_sandbox(pod)
    assert not client.sandbox_exists(pod) and not client.sandbox_ready(pod)
    client.remove_sandbox(pod)
    with pytest.raises(NotFound):
        trial.create(trial.spec(sandbox=pod))


def test_the_tally_counts_what_a_verb_causes(trial: Trial, container: str) -> None:
    tally = trial.client.tally
    before = tally.rpcs + tally.execs
    trial.client.exec(container, ("/bin/true",))
    expected = 3 if trial.subject.client == "sdk" else 1
    assert tally.rpcs + tally.execs == before + expected
    assert sum(tally.by_call.values()) == tally.rpcs + tally.execs


def test_via_tells_whose_work_it_is(trial: Trial) -> None:
    client = trial.client
    assert client.via(Operation.CREATE) == ""
    pausing = {"grpc": "ctr", "crictl": "ctr"}.get(trial.subject.client, "")
    assert (client.via(Operation.PAUSE), client.via(Operation.RESUME)) == (pausing, pausing)
    logging = {"oci": "stdio", "ctr": "binary logger"}.get(trial.subject.client, "")
    assert client.via(Operation.LOGS) == logging


def test_a_container_that_ends_by_itself(trial: Trial) -> None:
    container = trial.create(trial.spec(("/bin/sh", "-c", "printf unfinished; exit 7")))
    trial.client.start(container)
    trial.await_state(container, State.STOPPED)
    wait_until(lambda: [line.text for line in trial.client.logs(container)] == ["unfinished"], 10, "the last word")
    if trial.offers(Capability.EXIT_CODE):
        assert trial.client.exit_code(container) == 7
    trial.discard(container)


def _site(tmp_path: Path) -> Site:
    return Site(HostRunner(), tmp_path / "nobody.sock", "", {}, "", tmp_path, {}, "")


@pytest.mark.parametrize("client", ["grpc", "sdk"])
def test_nobody_at_the_socket(client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cri_door_grpc, "CONNECT_TIMEOUT_S", 0.05)
    subject = Subject("x", "attached", client, "builtin", frozenset())
    with pytest.raises(Unreachable, match=r"nobody\.sock"), open_client(subject, _site(tmp_path)):
        pass
    gc.collect()  # what it has left open would be found now, as a warning, which is an error


def test_a_client_that_nobody_wrote(tmp_path: Path) -> None:
    subject = Subject("x", "none", "telegraph", "runc", frozenset())
    with pytest.raises(UsageError, match="telegraph"), open_client(subject, _site(tmp_path)):
        pass


def test_a_crowd_of_lines_in_one_log(trial: Trial) -> None:
    """More than any pipe holds, on both streams at once; nothing is lost and each stream keeps its order."""
    script = "i=0; while [ $i -lt 3000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; echo ready"
    container = trial.create(trial.spec(("/bin/sh", "-c", script)))
    trial.client.start(container)
    trial.await_state(container, State.STOPPED)
    trial.await_word(container, "ready")
    wait_until(lambda: len(trial.client.logs(container)) == 6001, 10, "all lines")
    lines = trial.client.logs(container)
    for stream, word in ((Stream.STDOUT, "out"), (Stream.STDERR, "err")):
        texts = [line.text for line in lines if line.stream is stream and line.text != "ready"]
        assert texts == [f"{word} {number}" for number in range(3000)]
    trial.discard(container)
