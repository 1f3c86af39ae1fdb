"""harness.paths: suites and fixtures of a checkout, and of an installed package."""

from pathlib import Path

import pytest

from harness import paths


def test_in_a_checkout_they_stand_beside_the_package(tmp_path: Path) -> None:
    package = tmp_path / "harness"
    for folder in ("harness/suites", "suites", "fixtures"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    assert paths.suites(package) == tmp_path / "suites"
    assert paths.fixtures(package) == tmp_path / "fixtures"


def test_once_installed_they_are_inside_the_package_whatever_stands_beside_it(tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "harness"
    (package / "suites").mkdir(parents=True)
    (package / "fixtures").mkdir()
    (package.parent / "suites").mkdir()
    assert paths.checkout(package) is None
    assert paths.suites(package) == package / "suites"
    assert paths.fixtures(package) == package / "fixtures"


def test_a_broken_installation_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not whole"):
        paths.suites(tmp_path / "harness")


def test_these_ones_are_there() -> None:
    assert (paths.suites() / "lifecycle").is_dir()
    assert paths.fixtures().is_dir()
