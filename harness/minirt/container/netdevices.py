"""linux.netDevices: network devices of the machine that move into the container's network namespace, over rtnetlink(7).

Imported only where a config has them. A device keeps its permanent global addresses and is up at the end; from then on it
belongs to the namespace and whoever owns that.
"""

from __future__ import annotations

import errno
import os
import sys
from _socket import AF_NETLINK, SOCK_CLOEXEC, SOCK_RAW, if_nametoindex, socket

from harness.linux import syscalls
from harness.minirt.errors import SpecError, StepError, step_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from harness.minirt.container.reader import Reader

LONGEST_NAME = 15
_RTM_NEWLINK, _RTM_GETLINK, _RTM_NEWADDR, _RTM_GETADDR = 16, 18, 20, 22
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP, _NLM_F_REPLACE, _NLM_F_CREATE = 0x1, 0x4, 0x300, 0x100, 0x400
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_IFLA_IFNAME, _IFLA_NET_NS_FD = 3, 28
_IFA_LABEL, _IFA_CACHEINFO, _IFA_FLAGS = 3, 6, 8
_IFA_F_PERMANENT, _IFA_F_NOT_KEPT = 0x80, 0x80 | 0x40 | 0x08 | 0x20
"""flags of an address that the kernel sets itself: permanent, tentative, duplicate, deprecated"""
_RT_SCOPE_UNIVERSE = 0
_IFF_UP = 1
_HEADER = 16
_order = sys.byteorder


def parse_devices(entry: Reader) -> dict[str, str]:
    """``linux.netDevices``: the device's name → its name in the container."""
    devices = {}
    for name in entry.value:
        if not _is_name(name):
            raise entry.fail(name, "is not the name of a network device")
        device = entry.object(name)
        wanted = "" if device is None else device.text("name")
        if device is not None and wanted and not _is_name(wanted):
            raise device.fail("name", f"{wanted!r} is not the name of a network device")
        devices[name] = wanted or name
    plain = [wanted for wanted in devices.values() if "%d" not in wanted]
    if len(set(plain)) < len(plain):
        raise SpecError(entry.path, "gives two devices the same name")
    return devices


def _is_name(name: str) -> bool:
    """As dev_valid_name() of the kernel has it."""
    if not 0 < len(os.fsencode(name)) <= LONGEST_NAME or name in (".", ".."):
        return False
    return not any(letter in "/:" or letter.isspace() for letter in name)


def find_missing(names: Mapping[str, str]) -> str:
    """The first device that is not there; empty: all are."""
    for name in names:
        try:
            if_nametoindex(name)
        except OSError:
            return name
    return ""


class Netlink:
    """A route socket, in the network namespace in which it was made."""

    def __init__(self) -> None:
        self._socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def ask(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        """Send one request; the bodies of the answers. Raises `OSError` for the kernel's refusal."""
        self._sequence += 1
        head = (_HEADER + len(body)).to_bytes(4, _order) + kind.to_bytes(2, _order)
        head += (flags | _NLM_F_REQUEST).to_bytes(2, _order) + self._sequence.to_bytes(4, _order) + bytes(4)
        self._socket.send(head + body)
        answers: list[bytes] = []
        while True:
            packet = self._socket.recv(1 << 17)
            while packet:
                length, kind = int.from_bytes(packet[:4], _order), int.from_bytes(packet[4:6], _order)
                content = packet[_HEADER:length]
                packet = packet[(length + 3) & ~3 :]
                if kind == _NLMSG_ERROR:
                    number = -int.from_bytes(content[:4], _order, signed=True)
                    if number:
                        raise OSError(number, os.strerror(number))
                    return answers
                if kind == _NLMSG_DONE:
                    return answers
                answers.append(content)

    def links(self) -> dict[int, tuple[str, bool]]:
        """Every device: index → name, and whether it is up."""
        found = {}
        for content in self.ask(_RTM_GETLINK, _NLM_F_DUMP, _link(0)):
            names = [value for kind, value in _attributes(content[16:]) if kind == _IFLA_IFNAME]
            up = int.from_bytes(content[8:12], _order) & _IFF_UP
            found[int.from_bytes(content[4:8], _order)] = os.fsdecode(names[0].rstrip(b"\0")), bool(up)
        return found

    def addresses(self, index: int) -> list[bytes]:
        """The permanent addresses of global scope of a device, as RTM_NEWADDR takes them but for its index."""
        found = []
        for content in self.ask(_RTM_GETADDR, _NLM_F_DUMP, bytes(8)):
            family, length, flags, scope = content[:4]
            attributes = list(_attributes(content[8:]))
            for kind, value in attributes:
                flags = int.from_bytes(value, _order) if kind == _IFA_FLAGS else flags
            if int.from_bytes(content[4:8], _order) != index:
                continue
            if scope != _RT_SCOPE_UNIVERSE or not flags & _IFA_F_PERMANENT:
                continue
            kept = [(kind, value) for kind, value in attributes if kind not in (_IFA_LABEL, _IFA_CACHEINFO, _IFA_FLAGS)]
            kept.append((_IFA_FLAGS, (flags & ~_IFA_F_NOT_KEPT).to_bytes(4, _order)))
            found.append(bytes((family, length, 0, scope)) + bytes(4) + b"".join(_attribute(*pair) for pair in kept))
        return found

    def set_up(self, index: int, up: bool) -> None:
        """Bring a device up or down."""
        self.ask(_RTM_NEWLINK, _NLM_F_ACK, _link(index, _IFF_UP if up else 0, _IFF_UP))

    def move(self, index: int, name: str, namespace: int) -> None:
        """Move a device into the namespace behind a descriptor, and call it `name` there."""
        body = _link(index) + _attribute(_IFLA_NET_NS_FD, namespace.to_bytes(4, _order))
        self.ask(_RTM_NEWLINK, _NLM_F_ACK, body + _attribute(_IFLA_IFNAME, os.fsencode(name) + b"\0"))

    def add_address(self, index: int, address: bytes) -> None:
        """Give a device an address that `addresses` found."""
        body = address[:4] + index.to_bytes(4, _order) + address[8:]
        self.ask(_RTM_NEWADDR, _NLM_F_ACK | _NLM_F_CREATE | _NLM_F_REPLACE, body)


def _link(index: int, flags: int = 0, change: int = 0) -> bytes:
    """A ``struct ifinfomsg``."""
    return bytes(4) + index.to_bytes(4, _order) + flags.to_bytes(4, _order) + change.to_bytes(4, _order)


def _attribute(kind: int, value: bytes) -> bytes:
    padding = bytes(-len(value) % 4)
    return (4 + len(value)).to_bytes(2, _order) + kind.to_bytes(2, _order) + value + padding


def _attributes(content: bytes) -> Iterator[tuple[int, bytes]]:
    while len(content) >= 4:
        length, kind = int.from_bytes(content[:2], _order), int.from_bytes(content[2:4], _order) & 0x3FFF
        yield kind, content[4:length]
        content = content[(length + 3) & ~3 :]


class Moves:
    """The devices that have been moved for one container; what went wrong later can move them back."""

    def __init__(self, pid: int) -> None:
        """`pid`: a process in the container's network namespace. Raises `StepError`."""
        self._moved: list[tuple[int, str, bool, list[bytes]]] = []
        self._fds: list[int] = []
        self._sockets: list[Netlink] = []
        try:
            for whose in ("self", pid):
                self._fds.append(os.open(f"/proc/{whose}/ns/net", os.O_RDONLY | os.O_CLOEXEC))
            self._here, self._there = self._fds
            self._sockets.append(Netlink())
            syscalls.setns(self._there, syscalls.CLONE_NEWNET)
            try:
                self._sockets.append(Netlink())
            finally:
                syscalls.setns(self._here, syscalls.CLONE_NEWNET)
            self._home, self._away = self._sockets
        except OSError as error:
            self.close()
            raise step_error("enter the network namespace", error) from None

    def move(self, devices: Mapping[str, str]) -> None:
        """Move them all. Raises `StepError`; those that were moved before have to be moved back."""
        for name, wanted in devices.items():
            try:
                self._move(name, wanted)
            except OSError as error:
                step = f"move the network device {name}"
                raise StepError(step, error.errno or 0, f"{error.strerror or error}".lower()) from None

    def _move(self, name: str, wanted: str) -> None:
        found = [(index, up) for index, (known, up) in self._home.links().items() if known == name]
        if not found:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        index, up = found[0]
        before = self._away.links()
        if wanted in [known for known, _ in before.values()]:
            raise OSError(errno.EEXIST, f"the container has a device {wanted} already")
        # Read before it goes down: IPv6 forgets the addresses of a device that does.
        addresses = self._home.addresses(index)
        self._home.set_up(index, False)
        try:
            self._home.move(index, wanted, self._there)
        except OSError:
            _settle(self._home, index, addresses, up)
            raise
        fresh = _new_one(before, self._away.links())
        self._moved.append((fresh, name, up, addresses))
        _settle(self._away, fresh, addresses, up=True)

    def undo(self) -> None:
        """Move back what was moved, as far as that goes: the error that led here is the one to tell."""
        for index, name, up, addresses in reversed(self._moved):
            try:
                before = self._home.links()
                self._away.set_up(index, False)
                self._away.move(index, name, self._here)
                _settle(self._home, _new_one(before, self._home.links()), addresses, up)
            except OSError:
                continue
        self._moved.clear()

    def close(self) -> None:
        for end in self._sockets:
            end.close()
        for fd in self._fds:
            os.close(fd)


def _new_one(before: Mapping[int, object], after: Mapping[int, object]) -> int:
    """The index of the device that has come."""
    for index in after.keys() - before.keys():
        return index
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


def _settle(place: Netlink, index: int, addresses: list[bytes], up: bool) -> None:
    for address in addresses:
        place.add_address(index, address)
    place.set_up(index, up)
