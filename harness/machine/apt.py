"""Debian's package manager: install a package, and never remove or replace one for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from harness.command import Runner
from harness.errors import CommandError, MachineError, SeatrialError

LISTS = Path("/var/lib/apt/lists")
UPDATE = ("apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "-o", "DPkg::Lock::Timeout=120", "update")
INSTALL = (
    *("apt-get", "-q", "-o", "DPkg::Lock::Timeout=120"),
    # Else what was built from one source together with a new dependency is upgraded along with it: passwd with libsubid4.
    *("-o", "APT::Get::Upgrade-By-Source-Package=false"),
    *("install", "-y", "--no-install-recommends", "--no-remove"),
)


class Apt:
    """Installs with ``apt-get``. The package lists are fetched where there are none, and once more where one proves stale."""

    def __init__(self, runner: Runner, lists: Path = LISTS) -> None:
        self._runner = runner
        self._lists = lists
        self._updated = False
        self._broken: SeatrialError | None = None

    @property
    def has_lists(self) -> bool:
        """Whether the machine knows any packages; a fresh container image does not."""
        return any(self._lists.glob("*_Packages*"))

    def lines(self, packages: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """The commands that `install` would run, as argv."""
        update = () if self.has_lists or self._updated else (UPDATE,)
        return (*update, (*INSTALL, *packages))

    def install(self, packages: Sequence[str]) -> None:
        """Install `packages`. Raises `CommandError`, and `MachineError` where there is no apt-get or no network."""
        if shutil.which(INSTALL[0]) is None:
            raise MachineError("there is no apt-get here", f"install {' '.join(packages)} by this machine's own means")
        if not self.has_lists:
            self._update()
        try:
            self._run((*INSTALL, *packages), 900)
        except CommandError:
            if self._updated:
                raise
            # A list from last month names files that the archive has replaced since.
            self._update()
            self._run((*INSTALL, *packages), 900)

    def _update(self) -> None:
        if self._broken:
            raise self._broken
        if self._updated:
            return
        try:
            self._run(UPDATE, 300)
        except CommandError as error:
            # Asked once: offline, every further try would wait for the same silence.
            self._broken = MachineError(
                f"the package lists cannot be fetched ({last_line(error.stderr)})", "is there a network?"
            )
            raise self._broken from None
        self._updated = True

    def _run(self, argv: Sequence[str], timeout_s: float) -> None:
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
        self._runner.run(argv, timeout_s=timeout_s, env=env).check()


def last_line(text: str) -> str:
    """The last line of `text` that says something: where a package manager puts its point."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
