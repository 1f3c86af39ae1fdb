"""The commands `seatrial setup` and `seatrial` itself: output and exit status."""

import contextlib
import importlib
import io
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from harness.cli.setup import setup
from harness.errors import Interrupted, MachineError, UnknownSubject
from harness.machine.tools import TOOLS

cli = importlib.import_module("harness.cli.main")
"""the module: the name in the package is the function"""


def status_of(*argv: str) -> tuple[int, str]:
    """Exit status and stderr of a command line."""
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        return cli.status_of(argv), stderr.getvalue()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> dict[str, BaseException]:
    """A command `fail` that raises what the test puts into the dictionary."""
    errors: dict[str, BaseException] = {}

    @click.command("fail")
    def fail() -> None:
        raise errors["error"]

    monkeypatch.setattr(sys.modules[__name__], "fail", fail, raising=False)
    monkeypatch.setattr(cli, "COMMANDS", {"fail": (f"{__name__}:fail", "fails")})
    return errors


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (UnknownSubject("rnc", ["runc"], "runc"), 2, "did you mean 'runc'"),
        (MachineError("no root", "use sudo"), 3, "seatrial: no root; use sudo"),
        (Interrupted(15), 143, "interrupted by signal 15"),
        (Interrupted(2), 130, "interrupted by signal 2"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_become_a_message_and_a_status(
    failing: dict[str, BaseException], error: BaseException, status: int, words: str
) -> None:
    failing["error"] = error
    got, stderr = status_of("fail")
    assert got == status
    assert words in stderr
    assert "Traceback" not in stderr


def test_a_fault_of_our_own_is_not_hidden(failing: dict[str, BaseException]) -> None:
    failing["error"] = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        status_of("fail")


def test_an_unknown_command_is_bad_usage() -> None:
    status, stderr = status_of("sail")
    assert status == 2
    assert "sail" in stderr


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_of_the_table_is_there_and_teaches(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status_of([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: seatrial {name}")
    assert f"seatrial {name}" in text.partition("\n")[2] or name == "clean"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from harness.cli.main import status_of; status_of(['--help']); "
        "print(*sorted({'grpc', 'pandas', 'docker', 'requests', 'pytest', 'rich'} & set(sys.modules)), file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "doctor" in ended.stdout
    assert ended.stderr.strip() == ""


def test_dry_run_of_setup_is_a_script_that_the_shell_understands(tmp_path: Path) -> None:
    result = CliRunner().invoke(setup, ["--dry-run"], standalone_mode=False)
    assert result.exception is None
    script = tmp_path / "setup.sh"
    script.write_text(result.output)
    subprocess.run(["sh", "-n", str(script)], check=True, timeout=60)


def test_help_of_setup_names_every_tool_and_those_that_come_without_a_name() -> None:
    text = " ".join((setup.epilog or "").split()).partition("Names: ")[2].partition(". ")[0]
    default, named = (
        re.findall(r"[\w-]+", part.removeprefix(" and"))
        for part in text.split(", which are what it installs without a name;")
    )
    assert sorted(default) == sorted(name for name, tool in TOOLS.items() if tool.default)
    assert sorted(named) == sorted(name for name, tool in TOOLS.items() if not tool.default)


def test_setup_refuses_an_unknown_name() -> None:
    status, stderr = status_of("setup", "--dry-run", "dokcer")
    assert status == 2
    assert "did you mean 'docker'" in stderr
