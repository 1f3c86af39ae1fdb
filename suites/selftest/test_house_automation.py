"""Makefile, tox.ini, the workflow and .ci/run agree with each other and with the tables of the code."""

from __future__ import annotations

import configparser
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.fleet.definition import read_definitions
from harness.machine.tools import TOOLS
from harness.model.subject import BUILT_IN

ROOT = Path(importlib.import_module("harness").__file__ or "").parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "trial.yml"


def workflow() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text())
    return data


def trials_of_tox() -> dict[str, list[str]]:
    """The environments of tox that hold a trial, with the subjects of each."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "tox.ini")
    found = {}
    for section in parser.sections():
        commands = parser[section].get("commands", "").strip()
        if commands.startswith("seatrial run") and "--machine" not in commands:
            found[section.removeprefix("testenv:")] = [word for word in commands.split() if ":" in word]
    return found


def test_tox_tries_every_subject_once() -> None:
    tried = [subject for subjects in trials_of_tox().values() for subject in subjects]
    assert sorted(tried) == sorted(subject.name for subject in BUILT_IN)


def test_the_matrix_is_the_environments_of_tox() -> None:
    matrix = workflow()["jobs"]["trial"]["strategy"]["matrix"]["engine"]
    assert sorted(matrix) == sorted(trials_of_tox())


def test_machines_of_the_matrix_are_environments_of_tox_and_are_built_here() -> None:
    matrix = workflow()["jobs"]["machine"]["strategy"]["matrix"]["machine"]
    listed = subprocess.run(
        [sys.executable, "-m", "tox", "list", "--no-desc", "-q"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout.split()
    assert sorted(name for name in listed if name.startswith("vm-")) == sorted(f"vm-{name}" for name in matrix)
    known = read_definitions()
    assert all(known[name].recipe for name in matrix)


def test_actions_are_pinned_to_a_major_version() -> None:
    used = re.findall(r"uses: (\S+)", WORKFLOW.read_text())
    assert used
    assert [name for name in used if not re.fullmatch(r"actions/[a-z-]+@v\d+", name)] == []


def test_the_report_needs_the_trials_and_downloads_what_they_upload() -> None:
    jobs = workflow()["jobs"]
    assert jobs["report"]["needs"] == ["trial", "machine"]
    pattern = next(step["with"]["pattern"] for step in jobs["report"]["steps"] if "download" in step.get("uses", ""))
    for job in jobs["report"]["needs"]:
        uploaded = next(
            step["with"]["name"] for step in jobs[job]["steps"] if "upload-artifact" in step.get("uses", "")
        )
        assert uploaded.startswith(pattern.rstrip("*"))


def test_ci_is_make_test_and_machines() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=60)
    made = re.findall(r"make --no-print-directory (\w+)$", script.read_text(), re.MULTILINE)
    assert made == ["test", "machines"]


def test_make_help_lists_every_target_for_people() -> None:
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    phony = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
    assert {line.split()[1] for line in listed.splitlines()} == set(phony) - {"runtimes", "companions"}


def test_make_says_so_where_no_python_will_do(tmp_path: Path) -> None:
    """PATH without any Python, and a PYTHON= that is too old to be found: a sentence, not a traceback."""
    ended = subprocess.run(
        ["make", "--no-print-directory", "VENV=" + str(tmp_path / "venv"), "PYTHON=", "lint"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode != 0
    assert "needs Python 3.11 or newer" in ended.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("part", sorted({part for row in BUILT_IN for part in (row.engine, row.client, row.handler)}))
def test_whatever_a_subject_is_made_of_can_be_set_up_or_comes_along(part: str) -> None:
    bundled = {"none", "builtin", "minirt", "grpc", "sdk", "oci"}
    comes_with_its_engine = {"ctr", "cli"}
    brought_by_the_user = {"youki"}
    assert part in TOOLS or part in bundled | comes_with_its_engine | brought_by_the_user
