"""What a step cost: CPU time, memory and processes of the engine, the client and the pods of one arena."""

from harness.meter.gauge import Gauge, Reading
from harness.meter.meter import Meter, open_meter, spent

__all__ = ["Gauge", "Meter", "Reading", "open_meter", "spent"]
