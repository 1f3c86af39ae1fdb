"""What crictl 1.31 printed, and what becomes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.client.crictl import Crictl, message_of, parse_timed, refusal, split_fatal
from harness.client.verbs import Site
from harness.command import Completed, HostRunner
from harness.errors import Conflict, MachineError, NotFound, Refused, RuntimeRefusal, Unreachable
from harness.model.container import LogLine, Stream

KLOG = 'E1123 14:05:40.885507   14547 log.go:32] "StartContainer from runtime service failed" err="rpc error: code = '
START_TWICE = (
    KLOG
    + 'Unknown desc = failed to set starting state for container \\"f17\\": container is in CONTAINER_RUNNING state" '
    'containerID="f17"\n'
    'time="2026-11-23T14:05:40Z" level=fatal msg="starting the container \\"f17\\": rpc error: code = Unknown desc = '
    'failed to set starting state for container \\"f17\\": container is in CONTAINER_RUNNING state"\n'
)
UNKNOWN_ID = (
    KLOG + 'NotFound desc = an error occurred when try to find container \\"nope\\": not found" containerID="nope"\n'
    'time="2026-11-23T14:05:48Z" level=fatal msg="starting the container \\"nope\\": rpc error: code = NotFound desc = an '
    'error occurred when try to find container \\"nope\\": not found"\n'
)
NO_IMAGE = (
    'time="2026-11-23T14:05:53Z" level=error msg="no such image 127.0.0.1:5000/seatrial/spare:1"\n'
    'time="2026-11-23T14:05:53Z" level=fatal msg="unable to remove the image(s)"\n'
)
CLOSED_PORT = (
    'E1123 14:05:53.259805   17736 log.go:32] "PullImage from image service failed" err="rpc error: code = Unknown desc = '
    'dial tcp 127.0.0.1:9: connect: connection refused" image="127.0.0.1:9/x:1"\n'
    'time="2026-11-23T14:05:53Z" level=fatal msg="pulling image: dial tcp 127.0.0.1:9: connect: connection refused"\n'
)
MISSING_COMMAND = (
    'time="2026-11-23T14:05:49Z" level=fatal msg="execing command in container: Internal error occurred: error executing '
    'command in container: failed to start exec \\"79e\\": OCI runtime exec failed: exec failed: unable to start container '
    'process: exec: \\"/no/such\\": stat /no/such: no such file or directory: unknown"\n'
)


@pytest.mark.parametrize(
    ("stderr", "kind", "code"),
    [
        (START_TWICE, Conflict, "UNKNOWN"),
        (UNKNOWN_ID, NotFound, "NOT_FOUND"),
        (NO_IMAGE, NotFound, "1"),
        (CLOSED_PORT, Unreachable, "UNKNOWN"),
        (MISSING_COMMAND, Refused, "1"),
        ("rmp: rpc error: code = DeadlineExceeded desc = no answer\n", RuntimeRefusal, "DEADLINE_EXCEEDED"),
    ],
)
def test_refusals(stderr: str, kind: type[RuntimeRefusal], code: str) -> None:
    found = refusal(Completed(("crictl",), 1, b"", stderr.encode()))
    assert isinstance(found, kind)
    assert found.code == code


def test_messages_lose_their_dressing() -> None:
    assert message_of(UNKNOWN_ID) == (
        'starting the container "nope": rpc error: code = NotFound desc = an error occurred when try to find container '
        '"nope": not found'
    )
    assert message_of(NO_IMAGE) == "no such image 127.0.0.1:5000/seatrial/spare:1; unable to remove the image(s)"
    assert message_of("plain words") == "plain words"


def test_a_commands_stderr_is_told_from_crictls_own() -> None:
    own = b'time="2026-11-23T14:05:49Z" level=fatal msg="execing command: command terminated with exit code 42"\n'
    assert split_fatal(b"err\n" + own) == (b"err\n", own.decode().rstrip("\n"))
    assert split_fatal(b'without a newline, time="now"' + own)[0] == b'without a newline, time="now"'
    assert split_fatal(b"err\n") == (b"err\n", "")


def test_timed_lines() -> None:
    output = b"2026-11-23T14:07:07.028344015Z two\n2026-11-23T14:07:07.5Z \n"
    assert parse_timed(Stream.STDERR, output) == [
        LogLine(Stream.STDERR, "two", 1795442827028344015),
        LogLine(Stream.STDERR, "", 1795442827500000000),
    ]
    assert parse_timed(Stream.STDOUT, b"") == []


def test_without_crictl_it_says_what_would_mend_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.client.tool.SEARCHED", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match=r"crictl is not on PATH; seatrial setup crictl"):
        Crictl(Site(HostRunner(), tmp_path / "sock", "", {}, "", tmp_path, {}, ""))
