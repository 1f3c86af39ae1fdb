"""Reports: functions from records to text. They read nothing but records, so a report can be rebuilt anywhere."""

from harness.report.formats import FORMATS, render, write_all

__all__ = ["FORMATS", "render", "write_all"]
