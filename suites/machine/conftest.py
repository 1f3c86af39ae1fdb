"""What the machine under trial is to be: said by its definition, where it has one."""

from __future__ import annotations

import pytest

from harness.fleet.definition import Definition, find_definition, read_definitions


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--definition", default="", help="name of the machine in vagrant/machines.yaml that this one is")
    parser.addoption("--now", type=int, default=0, help="what time it is, in seconds since 1970, on another computer")


@pytest.fixture
def definition(request: pytest.FixtureRequest) -> Definition:
    """The machine's definition; without one there is nothing to be held against."""
    name = request.config.getoption("--definition")
    if not name:
        pytest.skip("this machine is none that Seatrial defines")
    return find_definition(name, read_definitions())
