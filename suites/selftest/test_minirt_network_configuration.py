"""Network configuration files: what is taken, and what is said of those that are not."""

from __future__ import annotations

import pytest

from harness.minirt.network.configuration import parse_network


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nonsense", "Expecting value"),
        ("[]", "not a JSON object"),
        ("{}", "lists no plugins"),
        ('{"name": "x", "plugins": {}}', "lists no plugins"),
        ('{"name": "x", "plugins": []}', "lists no plugins"),
        ('{"name": "x", "plugins": [{"type": "a"}, {}]}', r"plugins\[1\] has no type"),
        ('{"name": "x", "plugins": ["a"]}', r"plugins\[0\] has no type"),
        ('{"name": "x", "type": "../../bin/sh"}', "without a path"),
        ('{"name": "x", "type": "a", "capabilities": []}', "capabilities"),
        ('{"plugins": [{"type": "a"}]}', "no name"),
        ('{"name": "../x", "type": "a"}', "letters"),
        ('{"name": "x", "type": "a", "cniVersion": "9.9.9"}', "9.9.9 is not known"),
        ('{"name": "x", "type": "a", "cniVersions": "1.0.0"}', "not a list"),
    ],
)
def test_malformed(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_network(text, "x")


def test_a_single_plugin() -> None:
    network = parse_network('{"name": "x", "type": "first", "cniVersion": "0.4.0"}', "x.conf")
    assert (network.version, len(network.plugins)) == ("0.4.0", 1)
    assert network.speaks("0.3.1")
    assert not network.speaks("1.0.0")


def test_versions() -> None:
    assert parse_network('{"name": "x", "type": "a"}', "").version == "0.1.0"
    several = '{"name": "x", "type": "a", "cniVersion": "1.0.0", "cniVersions": ["0.4.0", "1.1.0", "7.0.0", "1.0.0"]}'
    assert parse_network(several, "").version == "1.1.0"
