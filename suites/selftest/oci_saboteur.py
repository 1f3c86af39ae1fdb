"""Broken runtimes for the suite ``oci``: each test meets the one that its mark ``breach`` describes. A pytest plugin."""

from __future__ import annotations

import pytest

from harness.session.oci import OciTrial
from harness.session.oci_breach import BrokenOciDoor

PATIENCE_S = 1.0


@pytest.fixture(autouse=True)
def broken(request: pytest.FixtureRequest, oci: OciTrial) -> None:
    """Put the breaches of the test between it and the runtime, the one that stands nearest to the test last."""
    oci.patience_s = PATIENCE_S
    for marker in request.node.iter_markers("breach"):
        for breach in marker.args:
            oci.door = BrokenOciDoor(oci.door, breach)
