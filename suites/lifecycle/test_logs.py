"""What a container printed: nothing lost, nothing mixed up, each line at its time."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from harness.model.capability import Capability
from harness.model.container import LogLine, Stream
from harness.model.lifecycle import State
from harness.session.trial import Trial

pytestmark = [pytest.mark.operation("logs"), pytest.mark.needs(Capability.LOGS)]

END = "the end"


def _logs_of(trial: Trial, script: str) -> list[LogLine]:
    """The log of a container that runs `script` to its end."""
    container = trial.create(trial.spec(("/bin/sh", "-c", script)))
    try:
        trial.client.start(container)
        trial.await_state(container, State.STOPPED)
        trial.await_word(container, END)
        return trial.client.logs(container)
    finally:
        trial.discard(container)


def _texts(lines: Sequence[LogLine], stream: Stream) -> list[str]:
    return [line.text for line in lines if line.stream is stream]


def test_logs_tell_stdout_from_stderr(trial: Trial) -> None:
    lines = _logs_of(trial, f"echo one; echo two >&2; echo three; echo '{END}'")
    assert _texts(lines, Stream.STDOUT) == ["one", "three", END]
    assert _texts(lines, Stream.STDERR) == ["two"]


def test_logs_lose_no_line_and_keep_their_order(trial: Trial) -> None:
    lines = _logs_of(trial, f"i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done; echo '{END}'")
    assert _texts(lines, Stream.STDOUT) == [*(f"line {number}" for number in range(500)), END]


def test_logs_keep_long_and_unfinished_lines(trial: Trial) -> None:
    """A line longer than a runtime's buffer (CRI splits at 16 KiB and marks the parts), and a last one without newline."""
    script = f"head -c 40000 /dev/zero | tr '\\0' x; echo; echo '{END}'; printf unfinished"
    texts = _texts(_logs_of(trial, script), Stream.STDOUT)
    assert [len(text) for text in texts] == [40000, len(END), len("unfinished")]
    assert texts[-1] == "unfinished"


@pytest.mark.needs(Capability.LOGS, Capability.LOG_TIMESTAMPS)
def test_logs_have_the_time_of_each_line(trial: Trial) -> None:
    """Times never run backwards, lie within the container's life, and tell an early line from a late one."""
    started_ns = time.time_ns()
    lines = _logs_of(trial, f"echo early; sleep 1; echo '{END}'")
    ended_ns = time.time_ns()
    times = [line.at_ns for line in lines]
    assert None not in times, f"a line has no time: {lines}"
    known = [at_ns for at_ns in times if at_ns is not None]
    assert known == sorted(known), f"times run backwards: {known}"
    assert started_ns <= known[0] and known[-1] <= ended_ns, "a line has a time outside of the container's life"
    # A reader on a busy machine comes late to the first of them.
    assert known[-1] - known[0] >= 0.5e9, "two lines a second apart have nearly the same time"
