"""A link: one ssh connection to a machine, over which everything else goes."""

from __future__ import annotations

import contextlib
import re
import secrets
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from harness.clock import wait_until
from harness.command import Completed, HostProcess, HostRunner
from harness.errors import MachineError, UsageError, WaitTimeout

CONNECT_S = 60.0
"""An emulated machine under load takes long to agree on keys."""
SILENCE_S = 30
"""without an answer: the other side is taken for dead"""


@dataclass(frozen=True, slots=True)
class Address:
    """Where ssh goes."""

    host: str
    """a name of the configuration, or ``user@host``"""
    options: tuple[str, ...] = ()
    """words of ssh(1)"""
    prefix: tuple[str, ...] = ()
    """what ssh is run by: a program that enters the machine's network first"""


def parse_address(text: str, config: Path | None = None) -> Address:
    """``ssh://[user@]host[:port]``; `config` is read in place of the user's own ssh_config(5). Raises `UsageError`."""
    match = re.fullmatch(r"ssh://((?:[A-Za-z0-9._-]+@)?)([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?/?", text)
    if match is None or match[2].startswith("-") or match[1].startswith("-"):
        raise UsageError(f"{text!r} is not the address of a host: write ssh://user@host or ssh://user@host:port")
    port = ("-p", match[3]) if match[3] else ()
    own = ("-F", str(config)) if config else ()
    return Address(match[1] + match[2].strip("[]"), (*own, *port))


class Link:
    """A context manager. The connection is a process of ours; commands share it, and end with it.

    It ends with the thread that opened it, whatever ends that: ssh then takes its socket with it.
    """

    def __init__(self, address: Address, name: str) -> None:
        self._address, self.name = address, name
        self._undo = contextlib.ExitStack()
        self._master: HostProcess | None = None
        self._socket = Path()
        self._sudo: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            # A path of a socket may have 107 bytes, and ssh adds some of its own while it makes it. In no folder of our own:
            # that would stay after a SIGKILL.
            self._socket = Path(f"/tmp/seatrial-{secrets.token_hex(8)}")
            undo.callback(self._socket.unlink, missing_ok=True)
            log = undo.enter_context(tempfile.TemporaryFile())
            argv = (
                *("setpriv", "--pdeathsig", "TERM", *self._address.prefix),
                *("ssh", "-M", "-N", "-S", str(self._socket)),
                *("-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S:g}"),
                *("-o", "ServerAliveInterval=5", "-o", f"ServerAliveCountMax={SILENCE_S // 5}"),
                *(*self._address.options, self._address.host),
            )
            self._master = HostRunner().start(argv, stdout_fd=log.fileno(), stderr_fd=log.fileno())
            undo.callback(self._master.stop)
            try:
                wait_until(lambda: self._socket.exists() or not self.alive, CONNECT_S, "")
            except WaitTimeout:
                raise MachineError(f"{self.name} does not answer by ssh within {CONNECT_S:g} s") from None
            if not self.alive:
                log.seek(0)
                said = log.read().decode(errors="replace").strip()
                raise MachineError(
                    f"{self.name} cannot be reached: {said or 'ssh gives no reason'}",
                    f"try it by hand: {shlex.join(('ssh', *self._address.options, self._address.host))}",
                )
            if self.run(("id", "-u")).check().text.strip() != "0":
                if self.run(("sudo", "-n", "true")).status:
                    raise MachineError(
                        f"a trial needs root on {self.name}", "allow sudo without a password, or connect as root"
                    )
                self._sudo = ("sudo", "-n")
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    @property
    def alive(self) -> bool:
        """Whether the connection stands."""
        return self._master is not None and self._master.poll() is None

    @property
    def ssh(self) -> tuple[str, ...]:
        """The beginning of a command line that goes over this link; a command for the machine's shell follows."""
        # Where the link is lost, ssh would connect anew, past all that was settled.
        how = ("-S", str(self._socket), "-o", "ControlMaster=no", "-o", "ProxyCommand=false", "-o", "BatchMode=yes")
        return ("ssh", *how, *self._address.options, self._address.host)

    def run(self, argv: Sequence[str], *, timeout_s: float = 60.0, root: bool = True) -> Completed:
        """Run `argv` there to its end. Raises `CommandTimeout`, `MachineError` where the connection is lost."""
        return self._checked(HostRunner().run((*self.ssh, self.line(argv, root=root)), timeout_s=timeout_s))

    def start(self, argv: Sequence[str], *, stdout_fd: int, stderr_fd: int) -> HostProcess:
        """Start `argv` there, as root. Ending the process here does not end the one there."""
        return HostRunner().start((*self.ssh, self.line(argv)), stdout_fd=stdout_fd, stderr_fd=stderr_fd)

    def send(self, data: bytes, argv: Sequence[str], *, timeout_s: float) -> None:
        """Have `argv` there read `data` as its stdin. Raises `CommandError`, `MachineError`."""
        done = HostRunner().run((*self.ssh, self.line(argv)), timeout_s=timeout_s, input=data)
        self._checked(done).check()

    def line(self, argv: Sequence[str], *, root: bool = True) -> str:
        """`argv` for the machine's shell; as root, unless it is said otherwise."""
        return shlex.join((*(self._sudo if root else ()), *argv))

    def _checked(self, done: Completed) -> Completed:
        """255 is what ssh ends with 255 for its own failures; where a command did, the connection still stands."""
        if done.status == 255 and not self.alive:
            raise MachineError(
                f"{self.name} was lost: {done.stderr.decode(errors='replace').strip() or 'the connection has ended'}"
            )
        return done
