"""How fast a pod may be: kubelet's annotations, Kubernetes quantities, what CNI's ``bandwidth`` capability makes of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction

from harness.minirt.errors import InvalidArgument

ANNOTATIONS = {"ingress": "kubernetes.io/ingress-bandwidth", "egress": "kubernetes.io/egress-bandwidth"}
LEAST, MOST = 1000, 10**15
"""bits a second"""
_BURST = 2**32 - 1
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?\d{1,3}))?")
_FACTORS = {
    **{mark: Fraction(1000) ** power for power, mark in zip(range(-3, 7), ("n", "u", "m", "", *"kMGTPE"), strict=True)},
    **{f"{mark}i": Fraction(1024) ** power for power, mark in enumerate("KMGTPE", 1)},
}


def parse_quantity(text: str) -> int:
    """A Kubernetes quantity (``10M``, ``1.5Gi``, ``2e3``), rounded up. Raises `ValueError`."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity")
    number, suffix, exponent = match.groups()
    factor = Fraction(10) ** int(exponent) if exponent else _FACTORS[suffix or ""]
    return math.ceil(Fraction(number) * factor)


def bandwidth_of(annotations: Mapping[str, str]) -> dict[str, int]:
    """``{"ingressRate": bits a second, "ingressBurst": bits, ...}`` for what is limited. Raises `InvalidArgument`."""
    found = {}
    for direction, key in ANNOTATIONS.items():
        if (text := annotations.get(key)) is None:
            continue
        try:
            rate = parse_quantity(text)
        except ValueError as error:
            raise InvalidArgument(f"annotation {key}: {error}") from None
        if not LEAST <= rate <= MOST:
            raise InvalidArgument(f"annotation {key}: {text!r} is not between 1k and 1P bits a second")
        found[f"{direction}Rate"], found[f"{direction}Burst"] = rate, _BURST
    return found
