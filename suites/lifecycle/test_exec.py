"""Run a command inside a running container: a kubelet's probes, and a person's first look."""

from __future__ import annotations

import pytest

from harness.errors import NotFound, Refused
from harness.model.capability import Capability
from harness.model.lifecycle import State
from harness.session.trial import Trial

pytestmark = [pytest.mark.operation("exec"), pytest.mark.needs(Capability.EXEC)]


@pytest.fixture
def container(trial: Trial) -> str:
    """A running container."""
    return trial.moored(State.RUNNING)[1]


def test_exec_tells_stdout_from_stderr(trial: Trial, container: str) -> None:
    result = trial.client.exec(container, ("/bin/sh", "-c", "echo to the one; echo to the other >&2"))
    assert (result.stdout, result.stderr) == (b"to the one\n", b"to the other\n")
    assert result.exit_code == 0


@pytest.mark.parametrize("status", [0, 42])
def test_exec_gives_the_commands_status(trial: Trial, container: str, status: int) -> None:
    assert trial.client.exec(container, ("/bin/sh", "-c", f"exit {status}")).exit_code == status


def test_exec_of_a_missing_command(trial: Trial, container: str) -> None:
    """A status of 126 or 127 (POSIX, "Exit Status for Commands"), or an error; never success. The container goes on."""
    try:
        result = trial.client.exec(container, ("/no/such/command",))
    except (NotFound, Refused) as refusal:
        assert "no/such/command" in str(refusal) or "no such file" in str(refusal).lower()
    else:
        assert result.exit_code in (126, 127), f"a command that is not there ended with {result.exit_code}"
    assert trial.client.state(container) is State.RUNNING


def test_exec_runs_in_the_container(trial: Trial, container: str) -> None:
    """In its PID namespace: the container's own first process is pid 1, and its environment is the container's."""
    result = trial.client.exec(
        container, ("/bin/sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '; echo; echo $SEATRIAL_ID")
    )
    lines = result.stdout.decode().splitlines()
    assert lines[0].startswith("/bin/sh -c trap"), f"pid 1 is {lines[0]!r}"
    assert lines[1], "the container's environment did not reach the command"


def test_exec_passes_every_byte(trial: Trial, container: str) -> None:
    """A megabyte of output arrives whole, and bytes that are no text arrive as they are."""
    result = trial.client.exec(container, ("/bin/sh", "-c", "head -c 1048576 /dev/zero; printf '\\377\\001'"))
    assert len(result.stdout) == 1048578
    assert result.stdout.endswith(b"\0\377\001")
