"""harness.fleet.link: one ssh connection for everything, against a server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_sshd import Server, ssh_server

from harness.clock import wait_until
from harness.errors import CommandError, CommandTimeout, MachineError, UsageError
from harness.fleet.link import Address, Link, parse_address


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
    file, target = tmp_path / "file", tmp_path / "target"
    file.write_bytes(bytes(range(256)) * 20_000)
    with Link(server.address, server.name) as link:
        link.send(file, ("tee", str(target)), timeout_s=60)
        assert target.read_bytes() == file.read_bytes()
        with pytest.raises(CommandError):
            link.send(file, ("tee", "/no/such/folder/file"), timeout_s=60)


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
    assert not Path(link.ssh[2]).parent.exists()


def test_the_connection_ends_with_the_link(server: Server) -> None:
    with Link(server.address, server.name) as link:
        socket = Path(link.ssh[2])
        assert socket.is_socket()
    assert not socket.parent.exists()
    assert not link.alive
