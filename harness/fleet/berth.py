"""A berth: the process that keeps a private libvirtd for one machine, in an arena, until it is told to end.

Its own network namespace has the bridge, the addresses and the firewall rules that libvirt makes; its folders cover those
of libvirt; its cgroups hold QEMU. So whatever ends it, all of the machine goes with it, and `seatrial clean` knows what a
kill left. Started as ``python -m harness.fleet.berth NAME FD`` by `harness.fleet.place`; FD is the reading end of a pipe whose
other end belongs to whoever wants the machine: when that one dies, the berth ends, unless it was told to `KEEP` on before.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from pathlib import Path

from harness.arena import Arena
from harness.clock import wait_until
from harness.errors import EngineError, SeatrialError, WaitTimeout

ARENA = "berth"
READY = "berth.json"
"""in the arena's state folder, when libvirtd answers: pid of the berth, pid of its keeper"""
KEEP = b"k"
COVERS = {
    "/etc/libvirt": "etc-libvirt",
    "/var/lib/libvirt": "libvirt",
    "/var/cache/libvirt": "cache-libvirt",
    "/var/log/libvirt": "log-libvirt",
}
QEMU_CONF = """\
# In a berth there is nobody to be protected from the machine but root, who owns it.
user = "root"
group = "root"
dynamic_ownership = 1
remember_owner = 0
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "logd"
"""
LIBVIRTD_CONF = """\
auth_unix_ro = "none"
auth_unix_rw = "none"
"""


def run_of(name: str) -> str:
    """The id under which a machine's berth is alive, as a run is."""
    return f"vm-{name}"


def keep(name: str, owner_fd: int) -> None:
    """Hold the berth of machine `name` until SIGTERM, or until its owner has gone. Raises `SeatrialError`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    terminated, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGTERM, lambda *_: None)
    with Arena.open(run_of(name), ARENA, covers=COVERS) as arena:
        folder = arena.root / COVERS["/etc/libvirt"]
        (folder / "qemu.conf").write_text(QEMU_CONF)
        (folder / "libvirtd.conf").write_text(LIBVIRTD_CONF)
        # QEMU is root without the right to pass by permissions where a distribution builds it so.
        for path in COVERS.values():
            (arena.root / path).chmod(0o711)
        processes = []
        for program in ("virtlogd", "libvirtd"):
            with (arena.logs / f"{program}.log").open("wb") as log:
                processes.append(arena.start((find_daemon(program),), stdout_fd=log.fileno(), stderr_fd=log.fileno()))

        def answers() -> bool:
            for process, program in zip(processes, ("virtlogd", "libvirtd"), strict=True):
                if process.poll() is not None:
                    text = (arena.logs / f"{program}.log").read_text(errors="replace")
                    raise EngineError(program, "has ended at once", text[-2000:])
            return arena.run(("virsh", "--connect", "qemu:///system", "version"), timeout_s=30).status == 0

        try:
            wait_until(answers, 45.0, "libvirtd to answer")
        except WaitTimeout as error:
            text = (arena.logs / "libvirtd.log").read_text(errors="replace")
            raise EngineError("libvirtd", str(error), text[-2000:]) from None
        draft = arena.state / f".{READY}"
        draft.write_text(json.dumps({"pid": os.getpid(), "keeper": arena.keeper_pid}))
        draft.replace(arena.state / READY)
        _wait_for_the_end(owner_fd, terminated)


def _wait_for_the_end(owner_fd: int, terminated: int) -> None:
    waiting = select.poll()
    waiting.register(terminated, select.POLLIN)
    waiting.register(owner_fd, select.POLLIN)
    while True:
        for fd, _ in waiting.poll():
            if fd == terminated or os.read(owner_fd, 1) != KEEP:
                return
            waiting.unregister(owner_fd)


def find_daemon(program: str) -> str:
    """Its path: these are in folders that a user's PATH may lack."""
    for folder in ("/usr/sbin", "/usr/bin", "/sbin"):
        if os.access(Path(folder, program), os.X_OK):
            return f"{folder}/{program}"
    return program


if __name__ == "__main__":
    try:
        keep(sys.argv[1], int(sys.argv[2]))
    except SeatrialError as error:
        sys.exit(str(error))
