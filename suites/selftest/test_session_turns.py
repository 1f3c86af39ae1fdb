"""Turns are balanced, seeded, and complete."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from harness.session.turns import take_turns


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 10])
def test_a_whole_square_is_balanced(size: int) -> None:
    """Each subject equally often in each position, and after each other subject (Williams 1949)."""
    rows = size if size % 2 == 0 else 2 * size
    turns = take_turns(range(size), rows, seed=7)
    positions = Counter((turn.position, turn.subject) for turn in turns)
    assert set(positions.values()) == {rows // size}
    assert len(positions) == size * size
    follows = Counter((one.subject, other.subject) for one, other in pairwise(turns) if one.block == other.block)
    assert len(follows) == size * (size - 1)
    assert len(set(follows.values())) <= 1


def test_every_block_has_every_subject_once() -> None:
    turns = take_turns("abcdefg", 5, seed=1)
    for block in range(5):
        assert sorted(turn.subject for turn in turns if turn.block == block) == list("abcdefg")


def test_the_seed_decides() -> None:
    assert take_turns("abcd", 4, seed=3) == take_turns("abcd", 4, seed=3)
    orders = {tuple(turn.subject for turn in take_turns("abcd", 4, seed=seed)) for seed in range(20)}
    assert len(orders) > 10


def test_more_blocks_than_rows_go_round_again() -> None:
    assert len(take_turns("ab", 7, seed=1)) == 14
