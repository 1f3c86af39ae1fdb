"""The short soak: after sixty pods daemon and supervisor hold what they held before (``seatrial run --suite soak`` is the long one)."""

from __future__ import annotations

import threading
from pathlib import Path

from cri_api.v1 import api_pb2 as api
from minirt_daemon import CGROUP, Daemon, running
from minirt_registry import busybox_layer, serving_registry

from harness.linux.mounts import read_mounts
from harness.meter.processes import read_pss

WARM, CYCLES, CLIENTS = 16, 60, 4
MOST_GROWTH_BYTES = 1 << 20
"""of either process in sixty pods; after two thousand it is less than half of that"""


def cycle(daemon: Daemon, image: str, name: str) -> None:
    pod = daemon.pod(name)
    id = daemon.run(pod, image, "trap 'exit 7' TERM; while :; do sleep 0.1; done", name)
    assert daemon.exec(id, "true").exit_code == 0
    daemon.stop(id)
    daemon.remove(id)
    daemon.remove_pod(pod)


def cycles(daemon: Daemon, image: str, stem: str, count: int) -> None:
    """`count` pods, a few at a time."""
    errors: list[BaseException] = []

    def work(client: int) -> None:
        try:
            for number in range(client, count, CLIENTS):
                cycle(daemon, image, f"{stem}-{number}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(client,)) for client in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def held(daemon: Daemon, pid: int) -> dict[str, int]:
    return {
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": len(list(Path(f"/proc/{pid}/task").iterdir())),
    }


def left(daemon: Daemon) -> tuple[int, int, int]:
    """Mounts, cgroups and files of the daemon's."""
    mounts = sum(mount.target.startswith(str(daemon.top)) for mount in read_mounts())
    cgroups = sum(path.is_dir() for path in Path("/sys/fs/cgroup").glob(f"*{CGROUP}/**/"))
    files = sum(1 for folder in (daemon.root, daemon.state) for _ in folder.glob("[cp]o*/**/*"))
    return mounts, cgroups, files


def test_nothing_grows(tmp_path: Path) -> None:
    with running(Daemon(tmp_path)) as daemon:
        with serving_registry() as registry:
            registry.add_image("busybox", "1", [busybox_layer()], {"Env": ["PATH=/bin"], "Cmd": ["true"]})
            image = daemon.pull(f"{registry.address}/busybox:1")
        cycles(daemon, image, "warm", WARM)
        assert daemon.process is not None
        pids = {"daemon": daemon.process.pid, "supervisor": daemon.supervisor_pid()}
        before = {name: held(daemon, pid) for name, pid in pids.items()}
        memory = {name: read_pss(pid) for name, pid in pids.items()}
        things = left(daemon)
        cycles(daemon, image, "soak", CYCLES)
        assert left(daemon) == things
        for name, pid in pids.items():
            after = held(daemon, pid)
            # Calls that come at once each have a thread and a connection, which are kept for the next.
            assert after["threads"] <= before[name]["threads"] + CLIENTS
            assert after["descriptors"] <= before[name]["descriptors"] + 2 * CLIENTS
            pss, old = read_pss(pid), memory[name]
            assert pss is not None and old is not None
            assert pss.anon <= old.anon + MOST_GROWTH_BYTES
        assert not daemon.runtime.ListPodSandbox(api.ListPodSandboxRequest()).items
