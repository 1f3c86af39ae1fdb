"""Whether a machine is what a trial needs: the checks of ``suites/machine``, by testinfra on that machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import CommandError, MachineError
from harness.fleet.cargo import PATH, Interpreter
from harness.fleet.definition import Definition
from harness.fleet.lines import NEVER, Recall, run
from harness.fleet.link import Link

LIMIT_S = 600.0
NEEDED = "harness.cli.trial_run, harness.client.cri_grpc, harness.client.docker_sdk, harness.plugin, xdist.remote"
"""What a trial imports, with all that these import."""
BESIDE = '"$0" -c "import $1" >/dev/null 2>&1 & shift; "$@"; status=$?; wait; exit "$status"'
"""sh(1): run a command, and import modules meanwhile."""


@dataclass(frozen=True, slots=True)
class Checked:
    """How many checks there were."""

    passed: int
    skipped: int

    def __str__(self) -> str:
        return f"{self.passed} checks passed" + (f", {self.skipped} do not apply" if self.skipped else "")


def check_machine(
    link: Link, place: str, interpreter: Interpreter, definition: Definition | None, recall: Recall = NEVER
) -> Checked:
    """Run every check on the machine behind `link`, from the harness that was shipped to `place`; `definition` says more of
    what it is to be.

    They run there, not here: an emulated machine takes seconds for each command that comes by ssh and sudo. Meanwhile it
    compiles what a trial imports, which the trial's processes would do at its start, all at once and each for itself. Raises
    `MachineError` with each check that failed and why, `CommandError` where they could not be run.
    """
    from junitparser import JUnitXml, Skipped, TestCase, TestSuite

    suites, report = f"{place}/{interpreter.library}/harness/suites", f"{place}/checks.xml"
    python = f"{place}/bin/python3"
    argv = [
        *("env", "-C", place, f"PATH={PATH}", "sh", "-c", BESIDE, python, NEEDED),
        *(python, "-m", "pytest", f"{suites}/machine", "-q"),
        *("-p", "no:cacheprovider", f"--rootdir={suites}", f"--config-file={suites}/checks.ini"),
        *(f"--junit-xml={report}", "--hosts=local://", f"--now={time.time():.0f}"),
        *([f"--definition={definition.name}"] if definition else []),
    ]
    done = run((*link.ssh, link.line(argv)), timeout_s=LIMIT_S, recall=recall)
    found = link.run(("cat", report))
    if found.status or done.status not in (0, 1):
        raise CommandError(argv, done.status, (done.stdout + done.stderr).decode(errors="replace"))
    cases: Sequence[TestCase] = [
        case for suite in JUnitXml.fromstring(found.stdout) if isinstance(suite, TestSuite) for case in suite
    ]
    skipped = [case for case in cases if any(isinstance(result, Skipped) for result in case.result)]
    broken = [case for case in cases if case.result and case not in skipped]
    if broken:
        lines = [f"  {case.name}: {_first(case.result[0].message or '')}" for case in broken]
        raise MachineError("\n".join([f"{link.name} is not what a trial needs: {len(broken)} checks failed", *lines]))
    return Checked(len(cases) - len(skipped), len(skipped))


def _first(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason given"
