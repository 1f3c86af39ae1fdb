"""Bandwidth annotations."""

from __future__ import annotations

import pytest

from harness.minirt.errors import InvalidArgument
from harness.minirt.network.bandwidth import bandwidth_of, parse_quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("1", 1), ("10M", 10**7), ("1.5Gi", 3 << 29), ("2e3", 2000), ("2E3", 2000), ("1E", 10**18), ("500m", 1),
     ("1001u", 1), (".5k", 500), ("3.", 3), ("+1Ki", 1024)],
)  # fmt: skip
def test_quantities(text: str, value: int) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["", "M", "1 M", "1MB", "1KI", "1K", "e3", "--1", "1e", "1.5.2", "0x10", "1\n"])
def test_malformed(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(text)


def test_annotations() -> None:
    assert bandwidth_of({"other": "1M"}) == {}
    found = bandwidth_of({"kubernetes.io/ingress-bandwidth": "1M", "kubernetes.io/egress-bandwidth": "2Mi"})
    burst = 2**32 - 1
    assert found == {"ingressRate": 10**6, "ingressBurst": burst, "egressRate": 2 << 20, "egressBurst": burst}


@pytest.mark.parametrize("text", ["999", "2P", "-1M", "fast"])
def test_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"kubernetes\.io/egress-bandwidth"):
        bandwidth_of({"kubernetes.io/egress-bandwidth": text})
