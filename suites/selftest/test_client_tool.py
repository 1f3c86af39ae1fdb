"""Tools that clients drive: what is counted, and how their failures come out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.client.oci import last_error
from harness.client.pidfile import watch
from harness.client.tool import NativeTool, Tool, by_stderr, find_tool, program_of
from harness.command import HostRunner
from harness.errors import CallTimeout, MachineError, NotFound, Refused
from harness.model.container import Tally


def _tool(tally: Tally, *prefix: str) -> Tool:
    return Tool(HostRunner(), prefix, tally, by_stderr)


def test_every_command_is_counted_also_one_that_fails() -> None:
    tally = Tally()
    assert _tool(tally, "/bin/echo").run("list", "-q").text == "list -q\n"
    assert _tool(tally, "/bin/sh", "-c").attempt("exit 3", call="shell").status == 3
    assert tally == Tally(rpcs=0, execs=2, by_call={"list": 1, "shell": 1})


def test_a_failure_is_a_refusal_with_its_words_and_status() -> None:
    with pytest.raises(NotFound) as caught:
        _tool(Tally(), "/bin/sh", "-c").run("echo container does not exist >&2; exit 4")
    assert (caught.value.message, caught.value.code) == ("container does not exist", "4")


def test_no_answer_in_time() -> None:
    with pytest.raises(CallTimeout, match="/bin/sleep 60"):
        _tool(Tally(), "/bin/sleep").run("60", timeout_s=0.05)


def test_native_tool() -> None:
    tally = Tally()
    native = NativeTool(HostRunner(), {"pause": ("/bin/sh", "-c", "exit 0", "pause")}, tally)
    native.run("pause", "m1")
    assert native.name == "sh"
    assert tally.by_call == {"pause": 1}
    with pytest.raises(Refused, match="no resume"):
        native.run("resume", "m1")
    assert NativeTool(HostRunner(), {}, tally).name == ""


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        (("/usr/bin/ctr", "--address", "/s", "tasks", "pause"), "ctr"),
        (("/usr/bin/python3", "-m", "harness.minirt", "--root", "/r", "pause"), "minirt"),
        (("minirt", "pause"), "minirt"),
    ],
)
def test_program_names(prefix: tuple[str, ...], name: str) -> None:
    assert program_of(prefix) == name


def test_find_tool(tmp_path: Path) -> None:
    assert find_tool("sh").endswith("/sh")
    with pytest.raises(MachineError, match="seatrial setup no-such-tool"):
        find_tool("no-such-tool")


def test_last_error_of_a_runtimes_log() -> None:
    log = (
        '{"level":"error","msg":"first","time":"2026-11-23T13:38:06Z"}\n'
        '{"level":"error","msg":"container does not exist\\n","time":"2026-11-23T13:38:07Z"}\n'
        '{"level":"warning","msg":"later","time":"2026-11-23T13:38:08Z"}\n'
        "no json\n[1]\n"
    )
    assert last_error(log) == "container does not exist"
    assert last_error('{"level":"info","msg":"fine"}\n') == ""
    assert last_error("") == ""
    spread = '{\n  "msg": "no \\/such",\n  "level": "error"\n}\n'
    assert last_error(log + spread) == "no /such"
    assert last_error('{"level": "error", "msg": "cut' + "\n" + spread) == "no /such"
    assert last_error(spread + '{"level": "error", "msg": "cut') == "no /such"


def test_watch_waits_for_the_end_of_a_process(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with Path(os.devnull).open("w") as null:
        process = HostRunner().start(["/bin/sleep", "60"], stdout_fd=null.fileno(), stderr_fd=null.fileno())
    try:
        pid_file.write_text(f"{process.pid}\n")
        with watch(pid_file) as ended:
            assert not ended(0)
            process.signal(9)
            assert ended(10)
    finally:
        process.stop()
    with watch(pid_file) as ended:
        assert ended(0), "a process that is gone has ended"
    with watch(tmp_path / "none") as ended:
        assert ended(0)
