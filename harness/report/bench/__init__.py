"""The report of a bench: figures against a reference, with intervals, limits and what chance does."""

from harness.report.bench.result import BenchResult
from harness.report.bench.statistics import find_bench

__all__ = ["BenchResult", "find_bench"]
