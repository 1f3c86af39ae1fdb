"""The report on several machines: one column for each subject on each machine, and what differs between them first."""

from harness.report.machines.merge import find_merged
from harness.report.machines.result import Merged

__all__ = ["Merged", "find_merged"]
