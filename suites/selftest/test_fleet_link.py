"""harness.fleet.link: one ssh connection for everything, against a server on loopback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_sshd import Server, ssh_server

from harness.clock import wait_until
from harness.errors import CommandError, CommandTimeout, MachineError, UsageError
from harness.fleet.link import Address, Link, parse_address


def socket_of(link: Link) -> Path:
    """Which its commands meet at."""
    return Path(link.ssh[2])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with ssh_server(tmp_path) as running:
        yield running


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ssh://me@example.org", Address("me@example.org")),
        ("ssh://example.org:2222", Address("example.org", ("-p", "2222"))),
        ("ssh://root@[::1]:22/", Address("root@::1", ("-p", "22"))),
    ],
)
def test_address(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["ssh://", "ssh://-oProxyCommand=x", "ssh://a b", "ssh://host:port", "ssh://u@-h", "http://h"]
)
def test_what_is_no_address_is_refused_before_ssh_sees_it(text: str) -> None:
    with pytest.raises(UsageError, match="ssh://user@host"):
        parse_address(text)


def test_commands_share_one_connection_and_keep_their_words(server: Server) -> None:
    with Link(server.address, server.name) as link:
        assert link.run(("printf", "%s|", "a b", "$HOME", "it's")).text == "a b|$HOME|it's|"
        assert link.run(("sh", "-c", "exit 255")).status == 255
        assert link.alive
    assert len(server.connections) == 1


def test_a_file_is_sent_whole(server: Server, tmp_path: Path) -> None:
    data, target = bytes(range(256)) * 20_000, tmp_path / "target"
    with Link(server.address, server.name) as link:
        link.send(data, ("tee", str(target)), timeout_s=60)
        assert target.read_bytes() == data
        with pytest.raises(CommandError):
            link.send(data, ("tee", "/no/such/folder/file"), timeout_s=60)


def test_a_command_that_takes_too_long_is_ended(server: Server) -> None:
    with Link(server.address, server.name) as link:
        with pytest.raises(CommandTimeout):
            link.run(("sleep", "60"), timeout_s=0.5)
        assert link.run(("echo", "on")).text == "on\n"


def test_a_link_that_is_lost_says_so_and_does_not_connect_anew(server: Server) -> None:
    with Link(server.address, server.name) as link:
        server.cut()
        wait_until(lambda: not link.alive, 30, "ssh to notice")
        with pytest.raises(MachineError, match="was lost"):
            link.run(("true",))


def test_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"cannot be reached.*refused.*try it by hand: ssh -p 1 127\.0\.0\.1"):
        (link := Link(Address("127.0.0.1", ("-p", "1")), "ssh://127.0.0.1:1")).__enter__()
    assert not socket_of(link).exists()


def test_the_connection_ends_with_the_link(server: Server) -> None:
    with Link(server.address, server.name) as link:
        assert socket_of(link).is_socket()
    assert not socket_of(link).exists()
    assert not link.alive


def test_the_connection_ends_with_whoever_is_killed(server: Server) -> None:
    program = (
        "import sys, time; from harness.fleet.link import Link, parse_address\n"
        "with Link(parse_address(sys.argv[1], sys.argv[2]), 'far') as link:\n"
        "    print(link.ssh[2], flush=True); time.sleep(100)"
    )
    with subprocess.Popen(
        (sys.executable, "-c", program, server.name, server.config), stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        socket = Path(holder.stdout.readline().strip())
        assert socket.is_socket()
        holder.kill()
    wait_until(lambda: not socket.exists(), 30, "ssh to take its socket with it")
    (connection,) = server.connections
    wait_until(connection.is_closed, 30, "the connection to end")
