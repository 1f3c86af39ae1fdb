"""The arena: a private place for one engine, with namespaces, folders and cgroups of its own."""

from harness.arena.arena import Arena
from harness.arena.cgroups import ArenaCgroups

__all__ = ["Arena", "ArenaCgroups"]
