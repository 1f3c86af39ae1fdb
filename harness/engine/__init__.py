"""Start and stop one engine each, private to an arena."""

from harness.engine.engine import Engine, RunningEngine
from harness.engine.opening import ENGINES, availability, start_engine, versions

__all__ = ["ENGINES", "Engine", "RunningEngine", "availability", "start_engine", "versions"]
