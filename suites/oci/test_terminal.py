"""Terminals: the console socket, the size, and what the container sees of it (config.md, "Process"; runc's terminals.md)."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import select
import socket
import struct
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from harness.model.area import OciArea
from harness.session.oci import SLEEP, OciTrial
from harness.session.oci_box import PROBE, Box
from harness.session.oci_breach import accepts, drops, puts, swallows
from harness.session.oci_facts import parse_facts

pytestmark = pytest.mark.operation(OciArea.PROCESS)


@dataclass(slots=True)
class Console:
    """The other end of a console socket, and the terminals that came through it."""

    server: socket.socket
    path: str
    masters: list[int] = field(default_factory=list)

    def master(self) -> int:
        """The next terminal that has been sent. Raises `AssertionError`."""
        try:
            connection, _ = self.server.accept()
        except TimeoutError:
            raise AssertionError("no one came to the console socket") from None
        with connection:
            connection.settimeout(5)
            _, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(4))
        assert ancillary, "no descriptor was sent"
        level, kind, data = ancillary[0]
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        (descriptor,) = array.array("i", data)
        self.masters.append(descriptor)
        return descriptor


@contextlib.contextmanager
def console(box: Box) -> Iterator[Console]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        found = Console(server, str(box.path / "console.sock"))
        server.bind(found.path)
        server.listen(2)
        server.settimeout(5)
        try:
            yield found
        finally:
            for descriptor in found.masters:
                os.close(descriptor)


def read_all(master: int, until: bytes = b"\n", timeout_s: float = 5) -> bytes:
    """What comes out of a terminal until a text, or its end."""
    said, deadline = b"", time.monotonic() + timeout_s
    while until not in said and time.monotonic() < deadline:
        if select.select([master], [], [], 0.1)[0]:
            try:
                data = os.read(master, 65536)
            except OSError:  # EIO: the last slave has been closed
                break
            if not data:
                break
            said += data
    return said


def with_terminal(oci: OciTrial, **more: object) -> Box:
    return oci.box({"process.terminal": True, **{f"process.{name}": value for name, value in more.items()}})


@pytest.mark.breach(swallows("create", "--console-socket"))
def test_a_terminal_is_sent_through_the_socket(oci: OciTrial) -> None:
    """runc, create: "--console-socket value: path to an AF_UNIX socket which will receive a file descriptor referencing the master end of
    the console's pseudoterminal".
    """
    box = with_terminal(oci, args=list(SLEEP))
    with console(box) as door:
        oci.create(box, "--console-socket", door.path)
        master = door.master()
        assert os.isatty(master)
        oci.start(box)
        assert oci.status(box) == "running"


@pytest.mark.breach(drops("process.terminal"))
def test_the_container_has_the_terminal(oci: OciTrial) -> None:
    """Process: "terminal (bool, OPTIONAL) specifies whether a terminal is attached to the process": its three streams are one, and it is
    its controlling terminal. Default devices: "/dev/console is set up if terminal is enabled in the config by bind mounting the
    pseudoterminal pty to /dev/console".
    """
    box = with_terminal(oci)
    box.set("process.args", ["/bin/sh", PROBE, "tty", "stat:/dev/console", "proc:stat", "link:/proc/1/fd/1"])
    with console(box) as door:
        done = oci.try_create(box, "--console-socket", door.path)
        assert done.status == 0, done.stderr
        master = door.master() if box.config["process"]["terminal"] else -1
        oci.start(box)
        facts = parse_facts(read_all(master, b"}\r\n"))
    assert facts.text("tty").startswith("/dev/")
    assert facts.text("link:/proc/1/fd/1") == facts.text("tty") or facts.text("tty") == "/dev/console"
    node = facts.node("/dev/console")
    assert node is not None
    assert node.kind == "c"
    assert int(facts.text("proc:stat").rpartition(")")[2].split()[4]) != 0, "it is no controlling terminal"


@pytest.mark.breach(drops("process.consoleSize"))
def test_console_size(oci: OciTrial) -> None:
    """Process: "consoleSize (object, OPTIONAL) specifies the console size in characters of the terminal"."""
    box = with_terminal(oci, args=list(SLEEP), consoleSize={"height": 31, "width": 97})
    with console(box) as door:
        oci.create(box, "--console-socket", door.path)
        size = fcntl.ioctl(door.master(), termios.TIOCGWINSZ, bytes(8))
        assert struct.unpack("HHHH", size)[:2] == (31, 97)


@pytest.mark.breach(puts("process.terminal", True))
def test_console_size_without_a_terminal_is_ignored(oci: OciTrial) -> None:
    """Process: "Runtimes MUST ignore consoleSize if terminal is false or unset"."""
    facts = oci.probe("tty", "size", changes={"process.consoleSize": {"height": 31, "width": 97}})
    assert (facts["tty"], facts["size"]) == (None, None)


@pytest.mark.breach(puts("process.args", ["/bin/cat", "/dev/null"]))
def test_the_terminal_works_both_ways(oci: OciTrial) -> None:
    """Process: a terminal is attached: what is typed is read, and what is printed comes out."""
    box = with_terminal(oci, args=["/bin/sh", "-c", "stty -echo; echo ready; read line; echo heard $line"])
    with console(box) as door:
        oci.create(box, "--console-socket", door.path)
        master = door.master()
        oci.start(box)
        assert b"ready\r\n" in read_all(master, b"ready\r\n")
        os.write(master, b"ahoy\n")
        assert b"heard ahoy\r\n" in read_all(master, b"heard ahoy\r\n")


@pytest.mark.breach(puts("process.user", {"uid": 0, "gid": 0}))
def test_the_terminal_belongs_to_the_user(oci: OciTrial) -> None:
    """Process: a terminal is attached to the process: its user can open it again (runc gives it to that user)."""
    box = with_terminal(oci, user={"uid": 1000, "gid": 1000})
    box.set(
        "process.args", ["/bin/sh", "-c", 'stat -c %u "$(readlink /proc/self/fd/0)" && echo again >/dev/tty; echo end']
    )
    with console(box) as door:
        oci.create(box, "--console-socket", door.path)
        master = door.master()
        oci.start(box)
        assert read_all(master, b"end\r\n").split() == [b"1000", b"again", b"end"]


@pytest.mark.breach(accepts("create"))
def test_a_socket_that_is_not_there_is_an_error(oci: OciTrial) -> None:
    """Create: what cannot be applied "MUST generate an error and a new container MUST NOT be created"."""
    box = with_terminal(oci, args=list(SLEEP))
    done = oci.try_create(box, "--console-socket", str(box.path / "nowhere.sock"))
    assert done.status != 0
    oci.untouched(box)


@pytest.mark.breach(swallows("exec", "--tty", value=False))
def test_exec_with_a_terminal(oci: OciTrial) -> None:
    """runc, exec: "--tty, -t: allocate a pseudo-TTY", sent through "--console-socket"."""
    oci.needs_flag("exec", "--tty")
    box = oci.launch()
    with console(box) as door:
        words = ("--tty", "--detach", "--console-socket", door.path, box.id, "/bin/sh", "-c", "tty >/tmp/tty; sleep 9")
        oci.attempt("exec", *words)
        assert os.isatty(door.master())
        oci.wait(
            lambda: (box.rootfs / "tmp" / "tty").exists() and (box.rootfs / "tmp" / "tty").read_text(), "its terminal"
        )
    assert (box.rootfs / "tmp" / "tty").read_text().startswith("/dev/")
