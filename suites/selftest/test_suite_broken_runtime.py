"""A runtime's author runs Seatrial against a runtime that is broken in one way, and is told loudly which way."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from harness.command import Completed, HostRunner

BROKEN = Path(__file__).parent / "broken"


def run_against(wrapper: str, reference: str, tmp_path: Path, *options: str) -> tuple[Completed, list[dict[str, str]]]:
    """``seatrial run`` of ``broken=oci:WRAPPER``, a copy of which knows its reference runtime; its records."""
    runtime = tmp_path / wrapper
    text = (BROKEN / wrapper).read_text()
    runtime.write_text(text.replace("$REFERENCE_RUNTIME", reference))
    runtime.chmod(0o755)
    argv = [sys.executable, "-m", "harness.cli", "run", "--quick", "--output", str(tmp_path), f"broken=oci:{runtime}"]
    done = HostRunner().run([*argv, *(["--", *options] if options else [])], timeout_s=300)
    (records,) = tmp_path.glob("*/records.jsonl")
    return done, [json.loads(line) for line in records.read_text().splitlines()]


def program(name: str) -> str:
    return (
        shutil.which(name, path=f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin") or name
    )


@pytest.mark.parametrize("reference", ["runc", "minirt"])
@pytest.mark.parametrize(
    ("wrapper", "operation", "words", "tests"),
    [
        ("swallows-sigterm", "stop", "SIGTERM was not delivered to the program", "test_stop_asks or test_voyage"),
        ("loses-a-line", "logs", "line 1", "test_logs or test_voyage"),
        ("always-zero", "exec", "assert 0 == 42", "test_exec or test_voyage"),
    ],
)
def test_a_broken_runtime_fails_loudly(
    wrapper: str, operation: str, words: str, tests: str, reference: str, tmp_path: Path
) -> None:
    done, records = run_against(wrapper, program(reference), tmp_path, "-q", "-k", tests)
    failed = [record for record in records if record["outcome"] == "fail" and record["operation"] == operation]
    assert done.status == 1, done.stderr.decode()
    assert any(words in record["reason"] for record in failed), [record["reason"] for record in failed]
    assert all("reproduce: seatrial run broken=" in record["reason"] for record in failed if record["phase"] == "check")
    assert "✗" in done.text
    assert [record["reason"] for record in records if record["outcome"] == "error"] == []


def test_the_reference_itself_passes(tmp_path: Path) -> None:
    """The same wrapping without the damage: what fails above fails because of the damage."""
    plain = tmp_path / "plain"
    plain.write_text(f'#!/bin/sh\nexec {program("runc")} "$@"\n')
    plain.chmod(0o755)
    argv = [sys.executable, "-m", "harness.cli", "run", "--quick", "--output", str(tmp_path), f"whole=oci:{plain}"]
    done = HostRunner().run(argv, timeout_s=300)
    assert done.status == 0, done.text + done.stderr.decode()
