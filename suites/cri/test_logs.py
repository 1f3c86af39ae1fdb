"""The log files of containers: the format that clients read by themselves (design proposal "CRI: Logging"), and rotation."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from harness.errors import RuntimeRefusal
from harness.model.area import Area
from harness.model.container import Stream
from harness.session.breach import accepts, drops, pretends, puts, swaps
from harness.session.cri import Box, CriTrial

pytestmark = pytest.mark.operation(Area.LOGS)

COMMAND = "CreateContainer.config.command"
ROW = re.compile(
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)) (stdout|stderr) ([FP]) (.*)", re.DOTALL
)


def rows(box: Box) -> list[tuple[bytes, bytes, bytes, bytes]]:
    """The raw lines of a log: time, stream, tag, text."""
    raw = box.log.read_bytes()
    assert raw.endswith(b"\n") or not raw, f"the log ends within a line: {raw[-80:]!r}"
    found = []
    for line in raw.split(b"\n")[:-1]:
        match = ROW.fullmatch(line)
        assert match, f"not a line of a CRI log: {line[:200]!r}"
        found.append((match[1], match[2], match[3], match[4]))
    return found


@pytest.mark.breach(puts("CreateContainer.config.tty", True))
def test_format_of_a_line(cri: CriTrial) -> None:
    """The format: "TIME STREAM TAGS MESSAGE", the time as RFC3339Nano, each stream by its name."""
    before = time.time_ns()
    ran = cri.run("echo out; echo '  spaces  '; echo; echo err >&2")
    found = {(stream, tag, text) for _, stream, tag, text in rows(ran.box)}
    assert found == {
        *((b"stdout", b"F", b"out"), (b"stdout", b"F", b"  spaces  "), (b"stdout", b"F", b"")),
        (b"stderr", b"F", b"err"),
    }
    assert all(before <= (line.at_ns or 0) <= time.time_ns() for line in cri.log(ran.box))


@pytest.mark.breach(puts(COMMAND, ["/bin/sh", "-c", "printf kept; printf '%040000d' 0; echo"]))
def test_long_and_unfinished_lines(cri: CriTrial) -> None:
    """Tag P for a part of a line, F for its end; a last line without its newline is a line."""
    ran = cri.run("printf '%040000d' 7; echo; printf last")
    found = rows(ran.box)
    assert {tag for _, _, tag, _ in found} == {b"P", b"F"} or [len(text) for *_, text in found] == [40_000, 4]
    assert [len(line.text) for line in cri.log(ran.box)] == [40_000, 4]
    assert ran.lines == ["0" * 39_999 + "7", "last"]


@pytest.mark.breach(puts(COMMAND, ["/bin/sh", "-c", "printf 'a?b\\n'"]))
def test_any_byte_goes_through(cri: CriTrial) -> None:
    """A message is bytes; only the newline ends it."""
    ran = cri.run(r"printf 'a\0b\377\r\tc\n'")
    assert [text for *_, text in rows(ran.box)] == [b"a\0b\xff\r\tc"]


@pytest.mark.breach(puts(COMMAND, ["/bin/sh", "-c", "seq 1 99; echo end"]))
def test_nothing_is_lost_at_several_megabytes_a_second(cri: CriTrial) -> None:
    """Every line, once, in order."""
    line, count = "x" * 90, 40_000
    box = cri.launch(["/bin/sh", "-c", f"yes {line} | head -n {count}; seq 1 5 >&2; echo end"])
    cri.await_exit(box)
    cri.wait(lambda: b" stdout F end\n" in box.log.read_bytes()[-1000:], "the last line")
    found = rows(box)
    written = [text for _, stream, _, text in found if stream == b"stdout"]
    whole = written == [line.encode()] * count + [b"end"]
    assert whole, f"{len(written)} lines in place of {count + 1}, or not as they were printed"
    assert [text for _, stream, _, text in found if stream == b"stderr"] == [b"1", b"2", b"3", b"4", b"5"]


@pytest.mark.breach(drops("CreateContainer.config.tty"))
def test_log_of_a_terminal(cri: CriTrial) -> None:
    """A terminal has one output: all of it is stdout."""
    ran = cri.run("echo out; echo err >&2", tty=True)
    assert {stream for _, stream, _, _ in rows(ran.box)} == {b"stdout"}
    assert [line.text.rstrip("\r") for line in cri.log(ran.box)] == ["out", "err"]


@pytest.mark.breach(puts("CreateContainer.config.log_path", "another/name.log"))
def test_log_path(cri: CriTrial) -> None:
    """log_path: "relative to PodSandboxConfig.LogDirectory", with folders in it, as kubelet has them."""
    box = cri.launch(["/bin/echo", "deep"], log_path="")
    cri.await_exit(box)
    name = f"{cri.trial.name('box')}/0.log"
    (box.pod.logs / name).parent.mkdir()
    ran = cri.run("echo deep", log_path=name)
    assert (box.pod.logs / name).exists(), "there is no log at that path"
    assert (box.pod.logs / name).read_text().endswith("stdout F deep\n")
    assert ran.status.log_path == str(box.pod.logs / name)


CHATTER = ("/bin/sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; usleep 2000; done")


@pytest.mark.breach(pretends("ReopenContainerLog"))
def test_log_is_reopened(cri: CriTrial) -> None:
    """ReopenContainerLog: "to reopen the stdout/stderr log file [...] after the log file has been rotated". No line is lost."""
    box = cri.launch(CHATTER)
    cri.await_line(box, "20")
    rotated = box.log.with_suffix(".rotated")
    box.log.rename(rotated)
    cri.call("ReopenContainerLog", container_id=box.id)
    assert box.log.exists(), "there is no new log when the call has returned"
    cri.wait(lambda: len(cri.log(box)) > 20, "lines in the new log")
    cri.stop(box)
    before = [row.split(b" ")[3] for row in rotated.read_bytes().split(b"\n") if row]
    after = [text for *_, text in rows(box)]
    assert [int(text) for text in before + after] == list(range(1, len(before) + len(after) + 1))


def _lost(request: dict[str, Any], call: Any) -> Any:
    raise RuntimeRefusal("the log cannot be reopened")


@pytest.mark.breach(swaps("ReopenContainerLog", _lost))
def test_reopen_without_a_rotation_goes_on_at_the_end(cri: CriTrial) -> None:
    """What was written stays."""
    box = cri.launch(CHATTER)
    cri.await_line(box, "10")
    cri.call("ReopenContainerLog", container_id=box.id)
    cri.await_line(box, "60")
    assert [line.text for line in cri.log(box)][:60] == [str(number) for number in range(1, 61)]


@pytest.mark.breach(accepts("ReopenContainerLog"))
def test_reopen_of_an_unknown_container_is_refused(cri: CriTrial) -> None:
    with pytest.raises(RuntimeRefusal):
        cri.call("ReopenContainerLog", container_id="no-such-container")


MADE: list[Box] = []


def _touched(request: dict[str, Any], call: Any) -> Any:
    MADE[-1].log.touch()
    raise RuntimeRefusal("the container does not run")


@pytest.mark.breach(swaps("ReopenContainerLog", _touched))
def test_reopen_of_an_ended_container(cri: CriTrial) -> None:
    """Of one that does not run: "can choose to either create a new log file and return nil, or return an error. Once it returns error, new
    container log file MUST NOT be created".
    """
    box = cri.run("echo kept").box
    MADE.append(box)
    box.log.rename(box.log.with_suffix(".rotated"))
    try:
        cri.call("ReopenContainerLog", container_id=box.id)
    except RuntimeRefusal:
        assert not box.log.exists()
    else:
        assert box.log.exists()


@pytest.mark.breach(pretends("RemoveContainer"))
def test_log_follows_the_streams_of_its_container_only(cri: CriTrial) -> None:
    """What a command of ExecSync prints is its caller's; and the name is free once the container is removed."""
    box = cri.launch(["/bin/sh", "-c", "echo mine; sleep 3600"])
    cri.await_line(box, "mine")
    cri.said(box, "echo theirs")
    assert [line.text for line in cri.log(box)] == ["mine"]
    cri.remove(box)
    assert cri.ended(_again(cri, box)).lines == ["again"]


def _again(cri: CriTrial, box: Box) -> Box:
    again = cri.create_from(box.pod, {**box.config, "command": ["/bin/echo", "again"], "log_path": f"{box.name}-2.log"})
    cri.start(again)
    return again


@pytest.mark.breach(puts(COMMAND, ["/bin/sh", "-c", "echo err >&2; echo out; sleep 3600"]))
def test_lines_come_while_the_container_runs(cri: CriTrial) -> None:
    """In the order in which one stream printed them, with times that do not go back."""
    box = cri.launch(["/bin/sh", "-c", "for n in 1 2 3 4 5; do echo $n; echo $n >&2; done; sleep 3600"])
    cri.await_line(box, "5", 2)
    lines = cri.log(box)
    for stream in Stream:
        mine = [line for line in lines if line.stream is stream]
        assert [line.text for line in mine] == ["1", "2", "3", "4", "5"]
        assert [line.at_ns for line in mine] == sorted(line.at_ns or 0 for line in mine)
