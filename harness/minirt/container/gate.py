"""The gate between `create` and `start`: a listening socket in the container's state folder.

The child of `create` holds the listening end and waits; `start` connects and says so; the child's answer on the same
connection is an error, or its end by the exec. A gate that is there means "created", one that is gone "started".
"""

from __future__ import annotations

from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socket

from harness.linux import lean as os
from harness.minirt.container.channel import Channel, restore
from harness.minirt.container.state import GATE
from harness.minirt.errors import WrongState


class Gate:
    """The child's side: `listener` listens, `folder` is a descriptor of the folder in which it stands."""

    __slots__ = ("folder", "listener")

    def __init__(self, folder: str) -> None:
        """Make the gate in a state folder. Raises `OSError`."""
        self.folder = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        # By way of the descriptor the address stays below the 108 bytes that a socket's may have.
        self.listener.bind(f"/proc/self/fd/{self.folder}/{GATE}")
        os.chmod(GATE, 0o600, dir_fd=self.folder)
        self.listener.listen(1)

    def fds(self) -> set[int]:
        """Its descriptors; none once it is closed."""
        return set() if self.listener.fileno() < 0 else {self.listener.fileno(), self.folder}

    def close(self) -> None:
        self.listener.close()
        os.close(self.folder)

    def await_start(self) -> Channel:
        """Wait until somebody says start; the connection to it. A trampoline does the same (see `trampoline`)."""
        while True:
            fd, _ = self.listener._accept()  # type: ignore[attr-defined]
            os.set_inheritable(fd, False)
            channel = Channel(socket(AF_UNIX, SOCK_SEQPACKET, 0, fd))
            if channel.receive()[0] == "start":
                try:
                    os.unlink(GATE, dir_fd=self.folder)
                except OSError:
                    # A user namespace took the right away: whoever started us removes it.
                    pass
                self.close()
                return channel
            channel.close()


def open_gate(folder: str, command: str) -> None:
    """Start the container that waits; returns once it has executed its program, `command`. Raises what the child reports."""
    directory = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    end = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    channel = Channel(end, command)
    try:
        try:
            end.connect(f"/proc/self/fd/{directory}/{GATE}")
        except (ConnectionRefusedError, FileNotFoundError):
            raise WrongState("cannot start a container that has stopped") from None
        channel.send("start")
        word, content = channel.receive()
        try:
            os.unlink(GATE, dir_fd=directory)
        except FileNotFoundError:
            pass
        if word == "error":
            raise restore(content)
    finally:
        channel.close()
        os.close(directory)
