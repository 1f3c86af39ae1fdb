"""How long the soak is."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cycles", type=int, default=2000, help="pods that the soak makes and removes, one after the other"
    )
