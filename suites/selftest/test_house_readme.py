"""README.md and CONTRIBUTING.md are true: each command in them is taken as it stands there."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from harness import paths
from harness.cli.main import seatrial
from harness.minirt.cri.options import Options, parse_options
from harness.model.config import parse_config
from harness.model.subject import BUILT_IN, parse_subject

ROOT = Path(importlib.import_module("harness").__file__ or "").parents[1]
PAGES = ("README.md", "CONTRIBUTING.md")
THEIRS = ["build"]
"""a target of the reader's own project, in the example of a workflow"""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every line of every shell block of both pages, and of the steps of the workflow in the README."""
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    for block in blocks("README.md", "yaml"):
        lines += [step["run"] for step in yaml.safe_load(block)["steps"] if "run" in step]
    return lines


def words_of(line: str) -> list[str]:
    """The words of a command, without comment, sudo and redirection."""
    words = shlex.split(line.replace('"$(command -v seatrial)"', "seatrial").replace("$PWD", "/src"), comments=True)
    return words[: words.index(">>")] if ">>" in words else words


def of_program(name: str) -> list[list[str]]:
    found = [words_of(line) for line in commands()]
    return [words[words.index(name) + 1 :] for words in found if words and words[words[0] == "sudo"] == name]


def test_the_pages_show_only_programs_that_are_checked_here() -> None:
    programs = {words[words[0] == "sudo"] for words in map(words_of, commands()) if words}
    assert programs == {"make", "seatrial", "pip", "minirt"}


@pytest.mark.parametrize("argv", [argv for argv in of_program("make") if argv != THEIRS], ids=" ".join)
def test_make_has_the_target(argv: list[str]) -> None:
    ended = subprocess.run(["make", "--dry-run", *argv], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("argv", of_program("seatrial"), ids=" ".join)
def test_seatrial_understands_the_command(argv: list[str]) -> None:
    with click.Context(seatrial) as group:
        command = seatrial.get_command(group, argv[0])
        assert command is not None
        context = command.make_context(argv[0], argv[1:], parent=group)
    if argv[0] == "run":
        subjects = [word for word in context.params["words"] if ":" in word]
        assert [parse_subject(word).name for word in subjects] == [word.partition("=")[0] for word in subjects]
        for suite in context.params["suites"]:
            assert any((paths.suites() / suite).glob("test_*.py"))


@pytest.mark.parametrize("argv", of_program("minirt"), ids=" ".join)
def test_minirt_understands_the_command(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert argv[0] in ("serve", "shutdown")
    assert parse_options(argv[1:]) == Options()


@pytest.mark.parametrize("line", ["doctor", "setup --dry-run"])
def test_cheap_commands_run_as_they_are(line: str) -> None:
    assert shlex.split(line) in of_program("seatrial")
    result = CliRunner().invoke(seatrial, shlex.split(line), standalone_mode=False)
    assert result.exception is None
    assert result.output


def test_the_configuration_in_the_readme_is_valid() -> None:
    (text,) = blocks("README.md", "toml")
    assert tomllib.loads(text)
    config = parse_config(text)
    assert config.subjects == ("mine", "oci:runc")


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
            assert (ROOT / target).exists(), f"{page} links to {target}"


def test_folders_in_the_readme_are_there() -> None:
    for folder in re.findall(r"^\| `([a-z/]+)/`", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert (ROOT / folder).is_dir(), folder


def test_the_subjects_that_the_pages_name_exist() -> None:
    known = {subject.name for subject in BUILT_IN}
    named = re.findall(r"`((?:minirt|containerd|docker|podman|oci):[a-z:]+)`", (ROOT / "README.md").read_text())
    assert named
    assert set(named) <= known


def test_there_is_room_for_the_table() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.index("<!-- table:start -->") < text.index("<!-- table:end -->")
