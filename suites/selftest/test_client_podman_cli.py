"""What podman 4.3 printed, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from arena_traces import fresh_run, traces

from harness.arena import Arena
from harness.client.podman_cli import PodmanCli, parse_podman_log, refusal
from harness.client.verbs import Site
from harness.clock import wait_until
from harness.command import Completed, Group, HostRunner, Process
from harness.engine import start_engine
from harness.errors import Conflict, NotFound, Refused
from harness.image.build import write_images
from harness.image.registry import serve
from harness.model.container import ContainerSpec, LogLine, Network, Stream
from harness.model.lifecycle import State
from harness.model.subject import parse_subject

AT = "2026-11-26T14:33:16.123456789+00:00"
AT_NS = 1795703596123456789
LATER = AT.replace(":16.", ":17.")
SECOND_NS = 1_000_000_000


class _Scripted:
    """A runner that has no podman: it answers the words after the prefix by a table."""

    def __init__(self, answers: Mapping[str, tuple[int, str, str]]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.groups: set[Group] = set()
        self.env: Mapping[str, str] | None = None

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        group: Group = Group.CLIENT,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        stdout_fd: int | None = None,
        stderr_fd: int | None = None,
    ) -> Completed:
        words = " ".join(argv[2:])
        self.asked.append(words)
        self.groups.add(group)
        self.env = env
        status, out, err = self.answers[words]
        return Completed(tuple(argv), status, out.encode(), err.encode())

    def start(
        self,
        argv: Sequence[str],
        *,
        group: Group = Group.ENGINE,
        env: Mapping[str, str] | None = None,
        stdout_fd: int,
        stderr_fd: int,
    ) -> Process:
        raise AssertionError("podman has no daemon to start")


def _client(runner: _Scripted, parent: str = "") -> PodmanCli:
    prefix, env = ("podman", "--root=/x"), {"CONTAINERS_CONF": "/x/containers.conf"}
    return PodmanCli(Site(runner, None, "", {}, parent, Path("/"), {}, "", prefix, env))


def test_its_command_is_on_the_engines_account_and_private() -> None:
    runner = _Scripted({"rm --volumes m1": (0, "m1\n", "")})
    _client(runner).remove("m1")
    assert runner.groups == {Group.ENGINE}
    assert runner.env == {"CONTAINERS_CONF": "/x/containers.conf"}


def test_create_replaces_the_entrypoint_and_names_the_parent() -> None:
    words = (
        'create --name m1 --pull never --network bridge --entrypoint ["/bin/sh"] --cgroup-parent /pods '
        "--env HARBOUR=deep water = good --env SEATRIAL_ID=m1 image -c exit 0"
    )
    runner = _Scripted({words: (0, "some warning\n0123abc\n", "")})
    spec = ContainerSpec(
        "m1", "image", ("/bin/sh", "-c", "exit 0"), (("HARBOUR", "deep water = good"),), Network.BRIDGE
    )
    assert _client(runner, "/pods").create(spec) == "0123abc"


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("created", State.CREATED),
        ("initialized", State.CREATED),
        ("stopping", State.RUNNING),
        ("exited", State.STOPPED),
    ],
)
def test_states(status: str, state: State) -> None:
    runner = _Scripted({"container inspect --format {{.State.Status}} m1": (0, f"{status}\n", "")})
    assert _client(runner).state("m1") is state


def test_a_state_that_nobody_knows_is_told() -> None:
    words = "container inspect --format {{.State.Status}} m1"
    with pytest.raises(Refused, match="'unknown'"):
        _client(_Scripted({words: (0, "unknown\n", "")})).state("m1")
    absent = (125, "[]\n", "Error: inspecting object: no such container m1\n")
    assert _client(_Scripted({words: absent})).state("m1") is State.ABSENT


def test_exec_tells_an_error_of_podman_from_one_of_the_command() -> None:
    improper = "Error: can only create exec sessions on running containers: container state improper\n"
    runner = _Scripted(
        {
            "exec m1 a": (255, "", improper),
            "exec m1 b": (255, "", "b: a failure of its own\n"),
            "exec m1 c": (3, "", "Error: signed, but no status of podman's\n"),
        }
    )
    client = _client(runner)
    with pytest.raises(Conflict):
        client.exec("m1", ("a",))
    assert client.exec("m1", ("b",)).exit_code == 255
    assert client.exec("m1", ("c",)).exit_code == 3


def test_has_image_is_told_by_the_status() -> None:
    runner = _Scripted(
        {
            "image exists a": (0, "", ""),
            "image exists b": (1, "", ""),
            "image exists c": (125, "", "Error: database is locked\n"),
        }
    )
    client = _client(runner)
    assert (client.has_image("a"), client.has_image("b")) == (True, False)
    with pytest.raises(Refused, match="locked"):
        client.has_image("c")


def test_log() -> None:
    output = f"{AT} ready\n{LATER} two words \n{LATER} unfinished".encode()
    assert parse_podman_log(Stream.STDOUT, output) == [
        LogLine(Stream.STDOUT, "ready", AT_NS),
        LogLine(Stream.STDOUT, "two words ", AT_NS + SECOND_NS),
        LogLine(Stream.STDOUT, "unfinished", AT_NS + SECOND_NS),
    ]
    with pytest.raises(ValueError, match="no-time"):
        parse_podman_log(Stream.STDOUT, b"no-time here\n")


def test_the_streams_are_merged_by_time() -> None:
    runner = _Scripted({"logs --timestamps m1": (0, f"{LATER} second\n", f"{AT} first\n")})
    assert [(line.stream, line.text) for line in _client(runner).logs("m1")] == [
        (Stream.STDERR, "first"),
        (Stream.STDOUT, "second"),
    ]
    assert runner.asked == ["logs --timestamps m1"]


def test_the_times_within_a_long_line_are_no_part_of_it() -> None:
    """A line in parts has the time of its first one. What the container itself printed stays, though it is a time."""
    long = "x" * 8192
    runner = _Scripted(
        {
            "logs --timestamps m1": (0, f"{AT} {long}{LATER} end\n{LATER} {AT} said\n", ""),
            "logs m1": (0, f"{long}end\n{AT} said\na line since\n", ""),
        }
    )
    assert _client(runner).logs("m1") == [
        LogLine(Stream.STDOUT, f"{long}end", AT_NS),
        LogLine(Stream.STDOUT, f"{AT} said", AT_NS + SECOND_NS),
    ]


def test_a_refusal_is_what_podman_signed() -> None:
    stderr = b'time="2026-11-26" level=warning msg="image not known"\nError: no such container m1\n'
    found = refusal(Completed(("podman",), 1, b"", stderr))
    assert (type(found), found.message, found.code) == (NotFound, "Error: no such container m1", "1")


def test_it_drives_a_podman_that_runs_already(tmp_path: Path) -> None:
    """Over the socket of its service, as ``seatrial run podman:cli:crun --attach SOCKET`` does."""
    run, subject = fresh_run(), parse_subject("podman:sdk:crun")
    write_images(tmp_path / "blobs")
    with (
        Arena.open(run, "far") as arena,
        serve(arena, tmp_path / "blobs", 5000) as registry,
        start_engine(subject, arena, str(registry)) as engine,
    ):
        client = PodmanCli(Site(HostRunner(), engine.socket, "", {}, engine.cgroup_parent, tmp_path, {}, ""))
        image = f"{registry}/seatrial/busybox:1"
        assert client.pull(image).startswith("sha256:")
        argv = ("/bin/sh", "-c", "trap 'echo bye; exit 5' TERM; echo out; echo err >&2; sleep 600 & wait")
        container = client.create(ContainerSpec("m1", image, argv))
        client.start(container)
        wait_until(lambda: len(client.logs(container)) == 2, 10, "both lines")
        assert client.exec(container, ("/bin/sh", "-c", "echo here; exit 3")).exit_code == 3
        client.pause(container)
        assert client.state(container) is State.PAUSED
        client.resume(container)
        client.stop(container, 10)
        assert client.exit_code(container) == 5
        assert sorted(line.text for line in client.logs(container)) == ["bye", "err", "out"]
        with pytest.raises(Conflict):
            client.exec(container, ("/bin/true",))
        client.remove(container)
        assert client.state(container) is State.ABSENT
    assert traces(run) == []
