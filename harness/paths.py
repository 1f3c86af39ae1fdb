"""Where suites, fixtures and definitions of machines are: beside the package in a checkout, inside it where a wheel was installed."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def suites(package: Path = PACKAGE) -> Path:
    """The folder of the pytest suites, one folder a subject matter. Raises `FileNotFoundError`."""
    return _folder(package, "suites")


def fixtures(package: Path = PACKAGE) -> Path:
    """The folder of image definitions, bundles and configurations. Raises `FileNotFoundError`."""
    return _folder(package, "fixtures")


def vagrant(package: Path = PACKAGE) -> Path:
    """The folder of the machines' definitions and of what goes into their boxes; ``SEATRIAL_VAGRANT`` names one of your own.

    Raises `FileNotFoundError`.
    """
    own = os.environ.get("SEATRIAL_VAGRANT")
    return Path(own).absolute() if own else _folder(package, "vagrant")


def checkout(package: Path = PACKAGE) -> Path | None:
    """The folder of the checkout that this package runs from, or None where it was installed."""
    return package.parent if (package.parent / "pyproject.toml").is_file() else None


def _folder(package: Path, name: str) -> Path:
    # Only a checkout is searched: some other distribution may own a folder "suites" beside the installed package.
    folder = (checkout(package) or package) / name
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: this installation of seatrial is not whole")
    return folder
