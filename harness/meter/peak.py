"""The most memory that a command held: a program that runs it and asks the kernel just before it ends.

``python -m harness.meter.peak FILE COMMAND [ARGUMENT]...`` writes the bytes of the largest resident set (``VmHWM``,
proc_pid_status(5)) into FILE, and ends as the command did. What getrusage(2) tells is at least what the process held that
started the command, and a small command's is lost in that.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.linux import syscalls, tracing


def run_weighed(argv: Sequence[str]) -> tuple[int, int]:
    """Run a command with our own stdio: its exit status (128 + N after signal N), and its peak in bytes (0: not known).

    Threads and children of the command are its own affair. Raises `OSError`.
    """
    pid = os.fork()
    if not pid:
        try:
            tracing.trace_me()
            syscalls.reset_signals()
            os.execv(argv[0], list(argv))
        except OSError as error:
            sys.stderr.write(f"{argv[0]}: {error.strerror}\n")
        finally:
            os._exit(127)
    peak = 0
    begun = False
    while True:
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            code = os.waitstatus_to_exitcode(status)
            return (code if code >= 0 else 128 - code), peak
        delivered = os.WSTOPSIG(status)
        if delivered == signal.SIGTRAP:
            # The first is that of the exec.
            if not begun:
                tracing.stop_at_exit(pid)
                begun = True
            elif tracing.event_of(status) == tracing.EVENT_EXIT:
                peak = parse_peak(Path(f"/proc/{pid}/status").read_text())
            delivered = 0
        tracing.go_on(pid, delivered)


def parse_peak(status: str) -> int:
    """``VmHWM`` in the text of ``/proc/PID/status``, in bytes; 0 where it is not told."""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def main(argv: Sequence[str]) -> int:
    """``FILE COMMAND [ARGUMENT]...``."""
    file, *command = argv
    status, peak = run_weighed(command)
    Path(file).write_text(f"{peak}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
