"""SCMP_ACT_NOTIFY: a seccomp agent is sent the descriptor, and answers for the calls of a container (config-linux.md)."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from minirt_bundle import Bundle, open_bundle

_RECEIVE, _ANSWER = 0xC0502100, 0xC0182101
_CONTINUE = 1
RUNTIMES = [
    "minirt",
    pytest.param("runc", marks=pytest.mark.skipif(shutil.which("runc") is None, reason="runc is not installed")),
]


class Agent:
    """Answers the n-th call that it is asked about with the n-th errno (0: done); takes any number of descriptors."""

    def __init__(self, path: Path, *answers: int) -> None:
        self.messages: list[dict[str, Any]] = []
        self.pids: list[int] = []
        self.peers: list[socket.socket] = []
        self._answers = list(answers)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            text, fds, _, _ = socket.recv_fds(peer, 65536, 4)
            self.messages.append(json.loads(text))
            self.peers.append(peer)
            thread = threading.Thread(target=self._serve, args=(fds[0],), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, fd: int) -> None:
        while True:
            asked = bytearray(80)
            try:
                fcntl.ioctl(fd, _RECEIVE, asked)
            except OSError:  # nobody is left who could ask
                os.close(fd)
                return
            id, pid = struct.unpack_from("QI", asked)
            self.pids.append(pid)
            # Whoever asks more often than expected is let through, and counted.
            error, flags = (-self._answers.pop(0), 0) if self._answers else (0, _CONTINUE)
            fcntl.ioctl(fd, _ANSWER, struct.pack("QqiI", id, 0, error, flags))

    def close(self) -> None:
        for end in (self._listener, *self.peers):
            end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    with open_bundle(tmp_path) as bundle:
        bundle.config["annotations"] = {"a": "b"}
        bundle.config["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": str(tmp_path / "agent"),
            "listenerMetadata": "what the agent needs",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
        }
        yield bundle


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_an_agent_answers(bundle: Bundle, runtime: str, no_new_privileges: bool) -> None:
    bundle.config["process"]["noNewPrivileges"] = no_new_privileges
    agent = Agent(bundle.folder / "agent", errno.EMLINK, 0)
    try:
        bundle.sh("mkdir /dev/shm/a 2>&1; mkdir /dev/shm/b && echo done; ls /dev/shm")
        done = bundle.runtime(runtime, "run", "box")
        # "The connection MUST NOT be reused and it MUST be closed"
        assert [peer.recv(10) for peer in agent.peers] == [b""]
    finally:
        agent.close()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["mkdir: can't create directory '/dev/shm/a': Too many links", "done"]
    (message,) = agent.messages
    assert message["fds"] == ["seccompFd"]
    assert message["metadata"] == "what the agent needs"
    state = message["state"]
    assert (state["id"], state["status"], state["pid"]) == ("box", "creating", message["pid"])
    assert (state["bundle"], state["annotations"]) == (str(bundle.folder), {"a": "b"})
    assert message["ociVersion"] == state["ociVersion"] or runtime == "runc"
    assert len(agent.pids) == 2


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_exec_has_an_agent_too(bundle: Bundle, runtime: str) -> None:
    """With the state of the container, which runs by then, beside the pid of the exec's process."""
    agent = Agent(bundle.folder / "agent", errno.EXDEV)
    try:
        bundle.sh("sleep 1000")
        with (bundle.folder / "out").open("w") as out:
            assert (
                bundle.runtime(
                    runtime, "run", "--detach", "box", stdout=out, stderr=out, capture_output=False
                ).returncode
                == 0
            )
        try:
            done = bundle.runtime(runtime, "exec", "box", "mkdir", "/dev/shm/a")
            state = json.loads(bundle.runtime(runtime, "state", "box").stdout)
        finally:
            bundle.runtime(runtime, "delete", "--force", "box")
    finally:
        agent.close()
    assert done.returncode == 1
    assert "Invalid cross-device link" in done.stderr
    first, second = agent.messages
    assert first["pid"] == state["pid"] == second["state"]["pid"]
    assert second["pid"] == agent.pids[0] != state["pid"]
    assert second["state"]["status"] == "running"
    assert second["metadata"] == "what the agent needs"


def test_an_agent_that_answers_for_every_other_call(bundle: Bundle) -> None:
    """Also for those by which a runtime would wait at its gate: only write(2) is its own."""
    bundle.config["linux"]["seccomp"]["flags"] = ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]
    bundle.config["linux"]["seccomp"]["syscalls"][0]["names"] = ["mkdir", "recvfrom", "close", "accept4", "unlinkat"]
    agent = Agent(bundle.folder / "agent")

    def let(fd: int) -> None:
        while True:
            asked = bytearray(80)
            try:
                fcntl.ioctl(fd, _RECEIVE, asked)
            except OSError:
                return
            fcntl.ioctl(fd, _ANSWER, struct.pack("QqiI", struct.unpack_from("Q", asked)[0], 0, 0, _CONTINUE))

    agent._serve = let  # type: ignore[method-assign]
    try:
        bundle.sh("mkdir /dev/shm/a && ls /dev/shm")
        assert bundle.ok("run", "box") == "a\n"
    finally:
        agent.close()


def test_without_an_agent_nothing_is_created(bundle: Bundle) -> None:
    """Sending to the socket fails: "the runtime MUST generate an error"."""
    done = bundle.sh("true").minirt("create", "box")
    assert done.returncode == 1
    assert "send the seccomp descriptor to its listener: failed to connect with seccomp agent" in done.stderr
    assert str(bundle.folder / "agent") in done.stderr
    assert bundle.leftovers() == []


def test_a_listener_is_ignored_where_nothing_asks_it(bundle: Bundle) -> None:
    bundle.config["linux"]["seccomp"]["syscalls"] = []
    bundle.config["linux"]["seccomp"]["flags"] = ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]
    assert bundle.run("echo ran") == "ran\n"


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"listenerPath": ""}, "listenerMetadata"),
        ({"listenerPath": "", "listenerMetadata": ""}, "listenerPath"),
        ({"listenerPath": "/" + 107 * "x"}, "listenerPath"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "defaultAction"),
        ({"syscalls": [{"names": ["read", "write"], "action": "SCMP_ACT_NOTIFY"}]}, "syscalls[0].names"),
        ({"syscalls": [{"names": [""], "action": "SCMP_ACT_LOG"}]}, "syscalls[0].names"),
        ({"syscalls": [{"names": ["read"], "action": "SCMP_ACT_LOG", "errnoRet": 0}]}, "syscalls[0].errnoRet"),
        ({"architectures": ["SCMP_ARCH_VAX"]}, "architectures[0]"),
    ],
)
def test_profiles_that_cannot_work_are_refused(bundle: Bundle, changes: dict[str, Any], where: str) -> None:
    bundle.config["linux"]["seccomp"] |= changes
    done = bundle.sh("true").minirt("create", "box")
    assert done.returncode == 1
    assert f"linux.seccomp.{where}: " in done.stderr
    assert bundle.leftovers() == []
