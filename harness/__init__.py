"""Seatrial: a conformance and benchmarking harness for container runtimes."""

__version__ = "0.1.0"
