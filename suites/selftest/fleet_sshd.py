"""An ssh server on loopback that runs commands on this computer: a machine far away that every test can have."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

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


async def pump(source: asyncio.StreamReader | None, sink: asyncssh.SSHWriter[bytes]) -> None:
    """What a program writes, as long as somebody reads it; then the program learns that nobody does."""
    assert source is not None
    while data := await source.read(65536):
        if sink.channel.is_closing():
            source._transport.close()  # type: ignore[attr-defined]
            return
        sink.write(data)


async def feed(process: asyncssh.SSHServerProcess[bytes], sink: asyncio.StreamWriter | None) -> None:
    assert sink is not None
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await process.stdin.read(65536):
            sink.write(data)
            await sink.drain()
    sink.close()


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
        child = await asyncio.create_subprocess_shell(
            process.command or "exit 0",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        feeder = asyncio.create_task(feed(process, child.stdin))
        await asyncio.gather(pump(child.stdout, process.stdout), pump(child.stderr, process.stderr))
        status = await child.wait()
        feeder.cancel()
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
