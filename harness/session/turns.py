"""Whose turn it is: seeded, balanced blocks, so that no subject always sails in another's wake."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Turn(Generic[T]):
    """One subject's turn in one block; both count from 0."""

    block: int
    position: int
    subject: T


def take_turns(subjects: Sequence[T], blocks: int, seed: int) -> list[Turn[T]]:
    """`blocks` orders of all `subjects`, one after the other.

    The orders are rows of a Williams square (E. J. Williams, "Experimental designs balanced for the estimation of
    residual effects of treatments", 1949): over a whole square, n rows for an even number n of subjects and 2n for an
    odd one, each subject stands equally often in each position, and follows each other subject equally often. `seed`
    decides who plays which part and which rows come first.
    """
    chance = random.Random(seed)
    cast = list(subjects)
    chance.shuffle(cast)
    rows = _square(len(cast))
    orders: list[list[int]] = []
    while len(orders) < blocks:
        chance.shuffle(rows)
        orders.extend(rows)
    return [
        Turn(block, position, cast[part])
        for block, order in enumerate(orders[:blocks])
        for position, part in enumerate(order)
    ]


def _square(size: int) -> list[list[int]]:
    first = [0]
    for step in range(1, size):
        first.append((first[-1] + (step if step % 2 else -step)) % size)
    rows = [[(part + shift) % size for part in first] for shift in range(size)]
    return rows if size % 2 == 0 else rows + [row[::-1] for row in rows]
