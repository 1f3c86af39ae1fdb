"""Start the registry of the test images where an engine can reach it."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path

from harness.command import Group, Runner
from harness.errors import MachineError

SERVER = Path(__file__).with_name("server.py")


@contextlib.contextmanager
def serve(runner: Runner, folder: Path, port: int = 5000, timeout_s: float = 60) -> Iterator[str]:
    """Serve the images in `folder` on loopback, in the network namespace of `runner`; ``host:port`` (0: any free port).

    Raises `MachineError` where the port is taken, or the registry does not answer within `timeout_s`.
    """
    address = f"127.0.0.1:{port}"
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as said:
        try:
            process = runner.start(
                [sys.executable, "-I", "-S", str(SERVER), str(folder), "--listen", address],
                group=Group.HARNESS,
                env={},
                stdout_fd=writer,
                stderr_fd=writer,
            )
        finally:
            os.close(writer)
        try:
            ready, _, _ = select.select([said], [], [], timeout_s)
            if not ready:
                raise MachineError(
                    f"the registry of the test images did not answer within {timeout_s:g} s",
                    "see what else is running on this machine",
                )
            word = said.readline().decode(errors="replace").strip()
            if not word.startswith("127.0.0.1:") or " " in word:
                raise MachineError(
                    f"the registry of the test images cannot listen on {word or address}",
                    "free that port, or choose another with --registry-port",
                )
            yield word
        finally:
            process.stop()
