"""What the daemon does not load, and what it gives back."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from harness.command import HostRunner
from harness.minirt.cri.footprint import parse_clean

SMAPS = """\
55d0c0a00000-55d0c0a10000 r-xp 00001000 fe:00 4711                       /usr/bin/python3
Rss:                  40 kB
Anonymous:             0 kB
55d0c0a10000-55d0c0a11000 r--p 00011000 fe:00 4711                       /usr/bin/python3
Rss:                   4 kB
Anonymous:             4 kB
55d0c0a11000-55d0c0a12000 rw-p 00012000 fe:00 4711                       /usr/bin/python3
Anonymous:             0 kB
7f0000000000-7f0000001000 r--p 00000000 00:00 0
Anonymous:             0 kB
7f0000002000-7f0000003000 r--s 00000000 fe:00 815                        /usr/lib/locale/C.utf8/LC_CTYPE
Anonymous:             0 kB
"""
PROGRAM = """
import sys
from harness.minirt.cri.footprint import give_back, import_grpc
import_grpc()
assert "asyncio" not in sys.modules and "grpc.aio" not in sys.modules
import grpc
from concurrent.futures import ThreadPoolExecutor

class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request[::-1])

server = grpc.server(ThreadPoolExecutor(1), handlers=[Echo()])
server.add_insecure_port(f"unix://{sys.argv[1]}")
server.start()
give_back()
with grpc.insecure_channel(f"unix://{sys.argv[1]}") as channel:
    print(channel.unary_unary("/a/b")(b"ahoy", timeout=30).decode())
server.stop(None).wait()
import asyncio
print(asyncio.run(asyncio.sleep(0, "real")))
"""


def test_only_what_can_be_read_from_its_file_again_is_given_back() -> None:
    """Neither relocated data, nor what can be written to, nor what has no file."""
    assert parse_clean(SMAPS) == [(0x55D0C0A00000, 0x55D0C0A10000), (0x7F0000002000, 0x7F0000003000)]


def test_the_parser_knows_what_this_kernel_writes() -> None:
    found = parse_clean(Path("/proc/self/smaps").read_text())
    assert len(found) > 10
    assert all(end > start and start % os.sysconf("SC_PAGESIZE") == 0 for start, end in found)


def test_grpc_serves_without_what_is_given_back(tmp_path: Path) -> None:
    done = HostRunner().run([sys.executable, "-c", PROGRAM, str(tmp_path / "sock")], timeout_s=60)
    assert done.stdout.split() == [b"yoha", b"real"], done.stderr.decode()
