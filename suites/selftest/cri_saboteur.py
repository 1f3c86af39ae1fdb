"""Broken runtimes for the suite ``cri``: each test meets the one that its mark ``breach`` describes. A pytest plugin."""

from __future__ import annotations

import pytest

from harness.session.breach import BrokenDoor
from harness.session.cri import CriTrial

PATIENCE_S = 2.0


@pytest.fixture(autouse=True)
def broken(request: pytest.FixtureRequest, cri: CriTrial) -> None:
    """Put the breaches of the test between it and the runtime, the one that stands nearest to the test last."""
    cri.patience_s = PATIENCE_S
    for marker in request.node.iter_markers("breach"):
        for breach in marker.args:
            cri.door = BrokenDoor(cri.door, breach)
