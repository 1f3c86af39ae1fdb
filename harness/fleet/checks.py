"""Whether a machine is what a trial needs: the checks of ``suites/machine``, by testinfra over a machine's link."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import paths
from harness.command import HostRunner
from harness.errors import CommandError, MachineError
from harness.fleet.definition import Definition
from harness.fleet.link import Link

LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class Checked:
    """How many checks there were."""

    passed: int
    skipped: int

    def __str__(self) -> str:
        return f"{self.passed} checks passed" + (f", {self.skipped} do not apply" if self.skipped else "")


def check_machine(link: Link, definition: Definition | None) -> Checked:
    """Run every check on the machine behind `link`; `definition` says more of what it is to be.

    Raises `MachineError` with each check that failed and why, `CommandError` where they could not be run.
    """
    from junitparser import JUnitXml, Skipped, TestCase, TestSuite

    with tempfile.TemporaryDirectory(prefix="seatrial-") as folder:
        config, report = Path(folder, "ssh_config"), Path(folder, "report.xml")
        config.write_text(link.config)
        argv = [
            *(sys.executable, "-m", "pytest", str(paths.suites() / "machine"), "-q", "-p", "no:cacheprovider"),
            *(f"--rootdir={paths.suites()}", f"--config-file={paths.suites() / 'checks.ini'}", f"--junit-xml={report}"),
            *(f"--hosts=ssh://{link.alias}?controlpersist=0&timeout=60", f"--ssh-config={config}"),
            *(["--sudo"] if link.needs_sudo else []),
            *([f"--definition={definition.name}"] if definition else []),
        ]
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        done = HostRunner().run(argv, timeout_s=LIMIT_S, env=env)
        if not report.exists() or done.status not in (0, 1):
            raise CommandError(argv, done.status, (done.stdout + done.stderr).decode(errors="replace"))
        cases: Sequence[TestCase] = [
            case for suite in JUnitXml.fromfile(str(report)) if isinstance(suite, TestSuite) for case in suite
        ]
    skipped = [case for case in cases if any(isinstance(result, Skipped) for result in case.result)]
    broken = [case for case in cases if case.result and case not in skipped]
    if broken:
        lines = [f"  {case.name}: {_first(case.result[0].message or '')}" for case in broken]
        raise MachineError("\n".join([f"{link.name} is not what a trial needs: {len(broken)} checks failed", *lines]))
    return Checked(len(cases) - len(skipped), len(skipped))


def _first(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason given"
