"""Attacks on minirt by way of its states, its sockets and the container's own processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from minirt_bundle import CGROUP, Bundle, open_bundle

from harness.clock import wait_until
from harness.minirt.container import cgroup as cgroups
from harness.minirt.container.document import LONGEST

LOOP = "trap : TERM; echo up; while :; do sleep 0.05; done"


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    with open_bundle(tmp_path) as bundle:
        bundle.config["root"]["readonly"] = False
        yield bundle


def _run(bundle: Bundle, script: str = LOOP) -> None:
    bundle.sh(script).create()
    bundle.ok("start", "box")
    bundle.await_output("up")


# ---- names


@pytest.mark.parametrize("id", ["..", ".", "../victim", "a/../../victim", "/etc", "", "a b", "ü", "a" * 300])
@pytest.mark.parametrize("verb", ["create", "state", "delete"])
def test_no_id_leads_out_of_the_root(bundle: Bundle, verb: str, id: str) -> None:
    victim = bundle.folder / "victim"
    victim.mkdir()
    (victim / "state.json").write_text("{}")
    bundle.sh("true")
    done = bundle.minirt(verb, *(["--force"] if verb == "delete" else []), id)
    assert done.returncode == 1
    assert (victim / "state.json").read_text() == "{}"
    assert not bundle.states.exists() or list(bundle.states.iterdir()) == []


@pytest.mark.parametrize(
    "words", [("delete",), ("delete", "--force"), ("kill",), ("state",), ("start",), ("exec",), ("pause",)]
)
def test_a_link_among_the_states_is_no_container(bundle: Bundle, words: tuple[str, ...]) -> None:
    victim = bundle.folder / "victim"
    victim.mkdir()
    state = {"ociVersion": "1.0.2", "id": "link", "pid": os.getpid(), "bundle": "/"}
    (victim / "state.json").write_text(json.dumps(state))
    bundle.states.mkdir()
    (bundle.states / "link").symlink_to(victim)
    done = bundle.minirt(*words, "link", *(["/bin/true"] if words == ("exec",) else []))
    assert done.returncode == (255 if words == ("exec",) else 1)
    assert json.loads((victim / "state.json").read_text()) == state
    assert bundle.ok("list", "--quiet") == ""
    assert bundle.minirt("create", "link").returncode == 1


# ---- files that do not end


@pytest.mark.parametrize("what", ["pipe", "zero", "sparse", "nested"])
def test_a_config_that_does_not_end(bundle: Bundle, what: str) -> None:
    config = bundle.folder / "config.json"
    if what == "pipe":
        os.mkfifo(config)
    elif what == "zero":
        config.symlink_to("/dev/zero")
    elif what == "sparse":
        with config.open("wb") as file:
            file.truncate(1 << 40)
    else:
        config.write_text("[" * (LONGEST - 1))
    argv = [sys.executable, "-m", "harness.minirt", "--root", str(bundle.states), "run", "box"]
    done = subprocess.run(argv, cwd=bundle.folder, capture_output=True, text=True, timeout=60, check=False)
    config.unlink()
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "config.json" in done.stderr
    assert bundle.leftovers() == []


@pytest.mark.parametrize("what", ["pipe", "zero"])
def test_a_process_file_that_does_not_end(bundle: Bundle, what: str) -> None:
    _run(bundle)
    path = bundle.folder / "process.json"
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    done = bundle.minirt("exec", "--process", str(path), "box")
    assert done.returncode == 255  # runc's, where an exec cannot start
    assert "Traceback" not in done.stderr


def test_a_process_may_come_through_a_pipe(bundle: Bundle) -> None:
    _run(bundle)
    process = bundle.config["process"] | {"args": ["/bin/echo", "by pipe"]}
    reading, writing = os.pipe()

    def write_late() -> None:
        time.sleep(0.5)
        os.write(writing, json.dumps(process).encode())
        os.close(writing)

    writer = threading.Thread(target=write_late)
    writer.start()
    try:
        assert bundle.ok("exec", "--process", "/dev/stdin", "box", stdin=reading) == "by pipe\n"
    finally:
        writer.join()
        os.close(reading)


# ---- sockets


@pytest.mark.parametrize("what", ["file", "pipe", "missing", "nobody", "full", "datagram"])
def test_a_console_socket_that_is_none(bundle: Bundle, what: str) -> None:
    path = bundle.folder / "console"
    keep: list[socket.socket] = []
    if what == "file":
        path.touch()
    elif what == "pipe":
        os.mkfifo(path)
    elif what != "missing":
        kind = socket.SOCK_DGRAM if what == "datagram" else socket.SOCK_STREAM
        keep.append(socket.socket(socket.AF_UNIX, kind))
        keep[0].bind(str(path))
        if what == "full":
            keep[0].listen(0)
            for _ in range(2):
                keep.append(socket.socket(socket.AF_UNIX, kind))
                keep[-1].setblocking(False)
                keep[-1].connect_ex(str(path))
    bundle.config["process"]["terminal"] = True
    try:
        done = bundle.sh("true").minirt("create", "--console-socket", str(path), "box")
    finally:
        for end in keep:
            end.close()
    assert done.returncode == 1
    assert "connect to the console socket" in done.stderr
    assert bundle.leftovers() == []


def test_a_console_socket_by_a_long_path(bundle: Bundle) -> None:
    folder = bundle.folder / ("deep" * 40)
    folder.mkdir()
    bundle.config["process"]["terminal"] = True
    there = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"/proc/self/fd/{there}/console")
        listener.listen(1)
        bundle.sh("echo up").ok("create", "--console-socket", str(folder / "console"), "box")
        end, _ = listener.accept()
        _, fds, _, _ = socket.recv_fds(end, 100, 1)
        end.close()
    os.close(there)
    bundle.ok("start", "box")
    assert os.read(fds[0], 100) == b"up\r\n"
    os.close(fds[0])


# ---- processes


def test_an_exec_that_the_container_kills(bundle: Bundle) -> None:
    """Its root may signal whoever is in its pid namespace: exec then fails, soon and with words, or succeeds."""
    _run(bundle, "echo up; while :; do kill -9 -1 2>/dev/null; done")
    bundle.config["process"]["capabilities"] = None
    seen = set()
    for _ in range(6):
        done = bundle.minirt("exec", "box", "/bin/echo", "ran")
        assert "Traceback" not in done.stderr
        seen.add(done.returncode)
        if done.returncode not in (0, 137):
            assert done.returncode == 255
            assert done.stderr
    assert bundle.state()["status"] == "running"
    assert seen <= {0, 137, 255}


_BOMB = """trap 'exec sh /bomb' EXIT
f() { f & f & wait; }
while :; do f; done 2>/dev/null
"""
"""A shell that cannot fork ends: this one begins again then, without a fork, so that the bomb does not burn out."""


def _explode(bundle: Bundle) -> cgroups.Cgroup:
    bundle.config["linux"]["resources"]["pids"] = {"limit": 60}
    (bundle.rootfs / "bomb").write_text(_BOMB)
    _run(bundle, "echo up; exec sh /bomb")
    cgroup = cgroups.cgroup_of(json.loads((bundle.states / "box/state.json").read_text())["cgroup"])
    (events,) = [path for folder in cgroup.distinct if (path := Path(folder, "pids.events")).exists()]
    wait_until(lambda: events.read_text() != "max 0\n", 20, "a fork beyond the limit")
    return cgroup


def test_a_fork_bomb_is_deleted(bundle: Bundle) -> None:
    cgroup = _explode(bundle)
    bundle.ok("delete", "--force", "box")
    assert bundle.leftovers() == []
    assert cgroup.pids() == []


def test_a_fork_bomb_without_a_pid_namespace_is_deleted(bundle: Bundle) -> None:
    """Here no process takes the others with it."""
    bundle.config["linux"]["namespaces"] = [
        entry for entry in bundle.config["linux"]["namespaces"] if entry["type"] != "pid"
    ]
    cgroup = _explode(bundle)
    bundle.ok("delete", "--force", "box")
    assert bundle.leftovers() == []
    assert cgroup.pids() == []


def test_a_frozen_container_is_deleted(bundle: Bundle) -> None:
    _run(bundle)
    bundle.ok("pause", "box")
    bundle.ok("delete", "--force", "box")
    assert bundle.leftovers() == []


@pytest.mark.skipif(cgroups.read_layout().version == 2, reason="the script writes to v1 hierarchies")
def test_a_process_that_moves_to_other_cgroups_is_deleted(bundle: Bundle) -> None:
    """With its hierarchies to write to, it makes cgroups below its own, and in one hierarchy leaves to the one above."""
    layout = cgroups.read_layout()
    folders = {
        name: f"{item.folder}{CGROUP}" for name, item in layout.v1.items() if name in ("freezer", "pids", "memory")
    }
    bundle.config["mounts"] += [
        {"destination": f"/cg/{name}", "type": "bind", "source": folder, "options": ["bind", "rw"]}
        for name, folder in folders.items()
    ]
    for folder in folders.values():
        Path(folder).mkdir(exist_ok=True)
    script = """
        mkdir /cg/freezer/box/in /cg/pids/box/in /cg/memory/box/in
        sleep 1000 & sleep 1001 & sleep 1002 &
        for p in $(cat /cg/freezer/box/cgroup.procs); do
            [ $p = 1 ] || { echo $p >/cg/pids/cgroup.procs; echo $p >/cg/memory/box/in/cgroup.procs; }
        done 2>/dev/null
        for p in $(cat /cg/memory/box/in/cgroup.procs); do echo $p >/cg/freezer/cgroup.procs; done
        echo up; while :; do sleep 0.05; done
    """
    _run(bundle, script)
    bundle.ok("delete", "--force", "box")
    assert bundle.leftovers() == []
    for name, folder in folders.items():
        assert cgroups.Cgroup(1, {name: folder}).pids() == []


def test_roots_that_several_containers_share(bundle: Bundle) -> None:
    """Two containers with one root filesystem: what is mounted for one is neither seen nor unmounted by the other."""
    _run(bundle, "echo up; while :; do cat /proc/self/stat >/dev/null || exit 9; sleep 0.05; done")
    bundle.config["linux"]["cgroupsPath"] = f"{CGROUP}/box/other"
    shown = bundle.sh("ls /proc | grep -c '^[0-9]'; touch /dev/shm/mine").ok("run", "other")
    assert int(shown) <= 3
    assert bundle.state()["status"] == "running"
    assert list((bundle.rootfs / "dev").iterdir()) == []
    assert list((bundle.rootfs / "proc").iterdir()) == []
