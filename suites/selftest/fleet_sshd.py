"""An ssh server on loopback that runs commands on this computer: a machine far away that every test can have."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import asyncssh

from harness.fleet.link import Address


@dataclass
class Server:
    """What a test knows of the server, and can do to it."""

    port: int
    folder: Path
    loop: asyncio.AbstractEventLoop
    connections: list[asyncssh.SSHServerConnection] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    running: list[Child] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"ssh://root@127.0.0.1:{self.port}"

    @property
    def address(self) -> Address:
        return Address("root@127.0.0.1", ("-p", str(self.port), "-F", str(self.config)))

    @property
    def config(self) -> Path:
        """How ssh(1) gets in without a question."""
        return self.folder / "config"

    def cut(self) -> None:
        """Break all connections off, as a machine that loses its power does."""
        for connection in list(self.connections):
            self.loop.call_soon_threadsafe(connection.abort)


class Child:
    """A command, and the threads that carry what it writes.

    Threads, because a command may outlive its connection: asyncio would complain of what is still open then.
    """

    def __init__(self, process: asyncssh.SSHServerProcess[bytes], loop: asyncio.AbstractEventLoop) -> None:
        self._process, self._loop = process, loop
        self.ended = asyncio.Event()
        self.child = subprocess.Popen(
            process.command or "exit 0",
            shell=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def end(self) -> None:
        """End the command with its group, where it still runs."""
        if self.child.poll() is None:
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()
        self._watcher.join(10)

    def _watch(self) -> None:
        pairs = ((self.child.stdout, self._process.stdout), (self.child.stderr, self._process.stderr))
        pumps = [threading.Thread(target=self._pump, args=pair, daemon=True) for pair in pairs]
        for pump in pumps:
            pump.start()
        for pump in pumps:
            pump.join()
        self.child.wait()
        self._call(self.ended.set)

    def _pump(self, source: IO[bytes], sink: asyncssh.SSHWriter[bytes]) -> None:
        """Until the command has written all; or until nobody reads any more, which the command learns at its next word."""
        with source:
            while data := os.read(source.fileno(), 65536):
                if sink.channel.is_closing() or not self._call(sink.write, data):
                    return

    def _call(self, what: Callable[..., object], *args: object) -> bool:
        """Have the server's thread do it; whether there is a server still."""
        try:
            self._loop.call_soon_threadsafe(what, *args)
        except RuntimeError:
            return False
        return True


async def feed(process: asyncssh.SSHServerProcess[bytes], sink: IO[bytes]) -> None:
    with contextlib.suppress(OSError, asyncssh.Error), sink:
        while data := await process.stdin.read(65536):
            sink.write(data)
            sink.flush()


@contextlib.contextmanager
def ssh_server(folder: Path) -> Iterator[Server]:
    """Serve until the end of the block; `folder` gets a key and the client's configuration."""
    loop = asyncio.new_event_loop()
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(folder / "key")
    (folder / "key").chmod(0o600)
    key.write_public_key(folder / "authorized")
    server = Server(0, folder, loop)

    class Door(asyncssh.SSHServer):
        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            server.connections.append(conn)

    async def run(process: asyncssh.SSHServerProcess[bytes]) -> None:
        server.commands.append(process.command or "")
        command = Child(process, loop)
        server.running.append(command)
        assert command.child.stdin is not None
        await feed(process, command.child.stdin)
        await command.ended.wait()
        server.running.remove(command)
        status = command.child.returncode
        with contextlib.suppress(OSError, asyncssh.Error):
            process.exit(status if status >= 0 else 128 - status)

    async def serve() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=Door,
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            authorized_client_keys=str(folder / "authorized"),
            process_factory=run,
            encoding=None,
        )

    async def end(acceptor: asyncssh.SSHAcceptor) -> None:
        for connection in server.connections:
            connection.abort()
        acceptor.close()
        await acceptor.wait_closed()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        # Transports close themselves in the next rounds of the loop.
        for _ in range(3):
            await asyncio.sleep(0)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    acceptor = asyncio.run_coroutine_threadsafe(serve(), loop).result(30)
    server.port = acceptor.get_port()
    server.config.write_text(
        f"Host *\n  IdentityFile {folder / 'key'}\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n"
        "  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
    )
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(end(acceptor), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
        for command in server.running:
            command.end()
