"""Tokens are good once and soon; the server gives nothing without one."""

from __future__ import annotations

import pytest

from harness.minirt.errors import Unavailable, UsageError
from harness.minirt.streaming import status
from harness.minirt.streaming.server import parse_address
from harness.minirt.streaming.tokens import LIFETIME_S, MOST, Tokens


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_token_is_good_once() -> None:
    tokens: Tokens[str] = Tokens()
    token = tokens.add("what it stands for")
    assert tokens.take("another") is None
    assert tokens.take(token) == "what it stands for"
    assert tokens.take(token) is None


def test_a_token_expires() -> None:
    clock = Clock()
    tokens: Tokens[str] = Tokens(clock)
    old = tokens.add("old")
    clock.now += LIFETIME_S - 1
    young = tokens.add("young")
    clock.now += 1
    assert tokens.take(old) is None
    assert tokens.take(young) == "young"


def test_there_is_an_end_of_tokens_until_some_expire() -> None:
    clock = Clock()
    tokens: Tokens[int] = Tokens(clock)
    assert len({tokens.add(number) for number in range(MOST)}) == MOST
    with pytest.raises(Unavailable):
        tokens.add(-1)
    clock.now += LIFETIME_S
    assert tokens.take(tokens.add(-1)) == -1


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:80", ("::1", 80)), ("localhost:65535", ("localhost", 65535))],
)
def test_an_address_is_read(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "127.0.0.1", ":80", "a:b", "a:65536", "a:-1", "a:²"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


def test_old_protocols_get_text() -> None:
    assert status.render(status.of_exit(0), "v3.channel.k8s.io") == b""
    assert b"exit status 3" in status.render(status.of_exit(3), "channel.k8s.io")
    assert status.render(status.of_failure("why"), "v2.channel.k8s.io") == b"Internal error occurred: why"
    assert status.render(status.of_exit(0), "v4.channel.k8s.io") == b'{"metadata": {}, "status": "Success"}'
