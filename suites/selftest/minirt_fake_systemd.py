"""A stand-in for systemd on a bus of its own: it answers as systemd does, notes every call, and makes no cgroups."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.minirt.container import bus

JOB = "/org/freedesktop/systemd1/job/7"


class FakeSystemd:
    """`calls`: name and arguments of each call of systemd, in order. `errors`: the error by which a call is answered next.

    `result`: how jobs end. `processes`: those that were in the units when they were started, by whether they lived then.
    """

    def __init__(self, path: Path, version: str = "252.39-1") -> None:
        self.calls: list[tuple[str, list[Any]]] = []
        self.errors: dict[str, list[str]] = {}
        self.result = "done"
        self.version = version
        self.silent = False
        self.processes: list[bool] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def properties(self, name: str) -> list[tuple[str, Any]]:
        """The properties in the last call of that name."""
        arguments = [arguments for called, arguments in self.calls if called == name][-1]
        return [(key, value) for key, (_, value) in arguments[2]]

    def _serve(self) -> None:
        while True:
            try:
                end, _ = self._listener.accept()
            except OSError:
                return
            with end, contextlib.suppress(ConnectionError, EOFError):
                self._talk(end)

    def _talk(self, end: socket.socket) -> None:
        greeting = self._until(end, b"\r\n")
        assert greeting == b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n"
        end.sendall(b"OK 0123456789abcdef0123456789abcdef\r\n")
        assert self._until(end, b"\r\n") == b"BEGIN\r\n"
        while True:
            head = self._exactly(end, 16)
            message = bus.unpack(head + self._exactly(end, bus.size_of(head) - 16))
            self._answer(end, message)

    def _answer(self, end: socket.socket, message: bus.Message) -> None:
        name = message.member
        if name not in ("Hello", "AddMatch", "Get"):
            self.calls.append((name, message.body))
        if self.silent and name != "Hello":
            return
        if self.errors.get(name):
            error = self.errors[name].pop(0)
            fields = {4: ("s", error), 5: ("u", message.serial)}
            end.sendall(bus.pack(3, 1, fields, "s", [f"{name} cannot be done"]))
            return
        signature, values = "", []
        if name in ("StartTransientUnit", "StopUnit"):
            signature, values = "o", [JOB]
            # Before the answer, as it can happen; and one that is about something else.
            self._signal(end, "/org/freedesktop/systemd1/job/6", "failed")
            if name == "StartTransientUnit":
                pids = dict(message.body[2]).get("PIDs", ("au", []))[1]
                self.processes += [Path(f"/proc/{pid}").exists() for pid in pids]
            self._signal(end, JOB, self.result)
        elif name == "Get":
            text = self.version if message.body[1] == "Version" else "/user.slice/user-5.slice/user@5.service"
            signature, values = "v", [("s", text)]
        elif name == "Hello":
            signature, values = "s", [":1.5"]
        end.sendall(bus.pack(2, 1, {5: ("u", message.serial)}, signature, values))

    def _signal(self, end: socket.socket, job: str, result: str) -> None:
        fields = {
            1: ("o", "/org/freedesktop/systemd1"),
            2: ("s", "org.freedesktop.systemd1.Manager"),
            3: ("s", "JobRemoved"),
        }
        end.sendall(bus.pack(4, 1, fields, "uoss", [7, job, "box.scope", result]))

    def _until(self, end: socket.socket, mark: bytes) -> bytes:
        said = b""
        while not said.endswith(mark):
            said += self._exactly(end, 1)
        return said

    def _exactly(self, end: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = end.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data


@contextlib.contextmanager
def fake_systemd(path: Path, version: str = "252.39-1") -> Iterator[FakeSystemd]:
    """One that listens at `path`."""
    found = FakeSystemd(path, version)
    try:
        yield found
    finally:
        found.close()
