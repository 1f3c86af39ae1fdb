"""The wheel is all that a user needs: installed outside the checkout, the commands work and find suites and fixtures."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(importlib.import_module("harness").__file__ or "").parents[1]

pytestmark = pytest.mark.xdist_group("wheel")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=300,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bin_of(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of a fresh environment that has the wheel, and sees the dependencies of this one, not the checkout.

    A path in a ``.pth`` file is added as it is: the ``.pth`` of the editable installation that lies there is not read.
    """
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    where = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    (Path(where) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def output_of(argv: list[str], folder: Path, statuses: tuple[int, ...] = (0,)) -> str:
    ended = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=120)
    assert ended.returncode in statuses, ended.stderr
    return ended.stdout


def test_suites_and_fixtures_travel_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in ("suites", "fixtures"):
        tracked = subprocess.run(
            ["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
        ).stdout.split()
        missing = [name for name in tracked if f"harness/{name}" not in names and (ROOT / name).exists()]
        assert tracked
        assert missing == []
    assert not [name for name in names if "__pycache__" in name]


def test_the_package_that_runs_is_the_installed_one(bin_of: Path, tmp_path: Path) -> None:
    code = "import harness.paths as p; print(p.checkout(), p.suites(), p.fixtures())"
    checkout, suites, fixtures = output_of([str(bin_of / "python"), "-c", code], tmp_path).split()
    assert checkout == "None"
    assert Path(suites).is_relative_to(bin_of.parent)
    assert Path(fixtures).is_relative_to(bin_of.parent)
    assert (Path(suites) / "lifecycle").is_dir()


def test_seatrial_explains_itself(bin_of: Path, tmp_path: Path) -> None:
    assert "Examples:" in output_of([str(bin_of / "seatrial"), "--help"], tmp_path)
    assert "version" in output_of([str(bin_of / "seatrial"), "--version"], tmp_path)


def test_seatrial_examines_the_machine(bin_of: Path, tmp_path: Path) -> None:
    assert "Subjects:" in output_of([str(bin_of / "seatrial"), "doctor"], tmp_path)


def test_minirt_is_installed_as_a_command(bin_of: Path, tmp_path: Path) -> None:
    command = bin_of / "minirt"
    (tmp_path / "link").symlink_to(command)
    for name in (str(command), "bin/minirt", str(tmp_path / "link")):
        assert " version " in output_of([name, "--version"], bin_of.parent).splitlines()[0]
    assert "Usage: minirt serve" in output_of([str(command), "serve", "--help"], tmp_path)


def test_a_trial_is_held_with_nothing_but_the_wheel(bin_of: Path, tmp_path: Path) -> None:
    """Images from the packaged fixtures, tests from the packaged suites, a report beside nobody's checkout."""
    command = [str(bin_of / "seatrial"), "run", "--quick", "--output", str(tmp_path), "oci:runc", "--", "-k", "exec"]
    output_of(command, tmp_path)
    (records,) = tmp_path.glob("*/records.jsonl")
    outcomes = {json.loads(line)["outcome"] for line in records.read_text().splitlines()}
    assert "pass" in outcomes
    assert outcomes <= {"pass", "n/a"}
    assert (records.parent / "report.html").stat().st_size > 1000
