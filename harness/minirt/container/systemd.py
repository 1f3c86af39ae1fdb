"""Cgroups that systemd makes and watches over: a transient unit for each container, and its limits as the unit's properties.

systemd takes what it is not told about for its own, so it is asked over D-Bus (org.freedesktop.systemd1(5)) wherever it has a
word for something (`unit_properties`); what it has none for is written to the cgroup's files afterwards (``Delegate=`` allows that). Names and
properties are those by which runc does it, because kubelet and podman look for them.
"""

from __future__ import annotations

import os

from harness.linux import syscalls
from harness.minirt.container.bus import BUS_NAME, Bus, BusError, parse_addresses
from harness.minirt.container.record import Record
from harness.minirt.container.unit_properties import (
    device_properties,
    parse_annotations,
    properties_v1,
    properties_v2,
    rounded,
)
from harness.minirt.errors import CgroupError, MinirtError, TimedOut, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from harness.minirt.container.resources import Resources
    from harness.minirt.container.unit_properties import Property

SYSTEM, USER = "system", "user"
"""whose systemd: the machine's, or that of the calling user"""
_NAME, _PATH, _MANAGER = "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_SYSTEM_SOCKET, _PRIVATE_SOCKET = "/run/dbus/system_bus_socket", "/run/systemd/private"
_JOB_TIMEOUT_S = 30.0


class Unit(Record):
    """A container's unit."""

    name: str
    slice: str = ""
    whose: str = SYSTEM
    properties: tuple[Property, ...] = ()
    """what else it is made with"""
    oom_group: str = ""
    """memory.oom.group, which systemd lets nobody change afterwards"""

    def as_document(self) -> dict[str, str]:
        """What has to be remembered of it."""
        return {"name": self.name, "slice": self.slice, "whose": self.whose}


def unit_of_document(document: dict[str, str]) -> Unit:
    """Undo `Unit.as_document`."""
    return Unit(document["name"], document["slice"], document["whose"])


def unit_of(path: str, id: str, whose: str, annotations: dict[str, str], unified: dict[str, str]) -> Unit:
    """The unit that a cgroupsPath ``SLICE:PREFIX:NAME`` stands for; an empty one is ``:minirt:ID``. Raises `CgroupError`."""
    parts = path.split(":") if path else ["", "minirt", id]
    if len(parts) != 3:
        raise CgroupError(
            f'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, got "{path}" instead'
        )
    slice, prefix, name = parts
    default = "user.slice" if whose == USER else "system.slice"
    unit = name if name.endswith(".slice") else f"{prefix}-{name}.scope"
    if "/" in unit:
        raise CgroupError(f"invalid unit name: {unit}")
    return Unit(
        unit, slice or default, whose, tuple(parse_annotations(annotations)), unified.get("memory.oom.group", "")
    )


def expand_slice(name: str) -> str:
    """Where a slice is in the tree: ``a-b.slice`` is ``/a.slice/a-b.slice``. Raises `CgroupError`."""
    stem = name.removesuffix(".slice")
    if stem == name or not stem or "/" in name:
        raise CgroupError(f"invalid slice name: {name}")
    if stem == "-":
        return ""
    words = stem.split("-")
    if not all(words):
        raise CgroupError(f"invalid slice name: {name}")
    return "".join(f"/{'-'.join(words[: index + 1])}.slice" for index in range(len(words)))


def open_bus(whose: str) -> Bus:
    """A connection to whoever knows that systemd. Raises `Unavailable`."""
    hint = "; systemd cgroups need a systemd that answers there"
    if whose == USER:
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        text = os.environ.get("DBUS_SESSION_BUS_ADDRESS") or (f"unix:path={runtime}/bus" if runtime else "")
        if not text:
            raise Unavailable(f"neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set{hint}")
        places = [(address, False) for address in parse_addresses(text)]
    else:
        text = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or f"unix:path={_SYSTEM_SOCKET}"
        places = [(address, False) for address in parse_addresses(text)]
        if os.geteuid() == 0 and "DBUS_SYSTEM_BUS_ADDRESS" not in os.environ:
            # systemd listens by itself too, for times without a bus.
            places.append((_PRIVATE_SOCKET, True))
    failure = Unavailable(f"the bus address {text!r} is of no kind that is supported")
    for address, direct in places:
        try:
            return Bus(address, direct=direct)
        except Unavailable as error:
            failure = error
    raise Unavailable(f"{failure}{hint}")


def call(bus: Bus, member: str, signature: str = "", *values: Any) -> list[Any]:
    """Call a method of systemd's manager. Raises `Unavailable` where systemd is not on the bus, `BusError`, `TimedOut`."""
    try:
        return bus.call(_NAME, _PATH, _MANAGER, member, signature, *values)
    except BusError as error:
        if error.name.endswith((".ServiceUnknown", ".NameHasNoOwner")):
            raise Unavailable("no systemd is on the bus; systemd cgroups need one") from None
        raise


def read_property(bus: Bus, name: str) -> str:
    """A property of the manager that is a text."""
    try:
        ((_, value),) = bus.call(_NAME, _PATH, _PROPERTIES, "Get", "ss", _MANAGER, name)
    except BusError as error:
        if error.name.endswith((".ServiceUnknown", ".NameHasNoOwner")):
            raise Unavailable("no systemd is on the bus; systemd cgroups need one") from None
        raise
    return str(value)


def read_version(bus: Bus) -> int:
    """Systemd's version; 0 where it cannot be told."""
    text = read_property(bus, "Version").lstrip('"v')
    digits = text[: len(text) - len(text.lstrip("0123456789"))]
    return int(digits or 0)


def path_of(unit: Unit) -> str:
    """The absolute path of a unit's cgroup. Raises `CgroupError`, and for a user's unit what asking for it raises."""
    place = f"{expand_slice(unit.slice)}/{unit.name}"
    if unit.whose == SYSTEM:
        return place
    with open_bus(USER) as bus:
        return f"{read_property(bus, 'ControlGroup')}{place}"


class Placeholder:
    """A process that does nothing but be in a unit, which cannot begin without one, until the container's is there."""

    def __init__(self) -> None:
        reading, self._writing = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                # Whatever else is open, others wait for its end.
                os.dup2(reading, 0)
                syscalls.close_range(1)
                os.read(0, 1)
            finally:
                os._exit(0)
        os.close(reading)

    def end(self) -> None:
        os.close(self._writing)
        os.waitpid(self.pid, 0)


_placeholders: dict[str, Placeholder] = {}


def start(unit: Unit, v2: bool) -> None:
    """Have systemd make the unit, with a placeholder in it until `settle`. Raises `CgroupError`, and what a call raises."""
    with open_bus(unit.whose) as bus:
        placeholder = Placeholder()
        try:
            properties = list(_birth_properties(unit, placeholder.pid, v2))
            if unit.oom_group in ("0", "1") and read_version(bus) >= 253:
                properties.append(("OOMPolicy", ("s", "kill" if unit.oom_group == "1" else "continue")))
            _start_unit(bus, unit.name, properties)
        except BaseException:
            placeholder.end()
            raise
    _placeholders[unit.name] = placeholder


def settle(unit: Unit) -> None:
    """End the placeholder of a unit that has a process of its own, or that is given up."""
    placeholder = _placeholders.pop(unit.name, None)
    if placeholder is not None:
        placeholder.end()


def _birth_properties(unit: Unit, pid: int, v2: bool) -> Iterator[Property]:
    yield "Description", ("s", f"minirt container {unit.name.rpartition('.')[0]}")
    if unit.name.endswith(".slice"):
        yield "Wants", ("as", [unit.slice])
    else:
        yield "Slice", ("s", unit.slice)
        yield "Delegate", ("b", True)
        yield "PIDs", ("au", [pid])
    for name in ("MemoryAccounting", "CPUAccounting", "IOAccounting" if v2 else "BlockIOAccounting", "TasksAccounting"):
        yield name, ("b", True)
    yield "DefaultDependencies", ("b", False)
    yield from unit.properties


def _start_unit(bus: Bus, name: str, properties: list[Property]) -> None:
    def ask() -> list[Any]:
        return call(bus, "StartTransientUnit", "ssa(sv)a(sa(sv))", name, "replace", properties, [])

    _follow_jobs(bus)
    try:
        try:
            (job,) = ask()
        except BusError as error:
            if not error.name.endswith(".UnitExists"):
                raise
            # What is left of a unit that failed has the name still.
            _reset(bus, name)
            (job,) = ask()
        result = _await_job(bus, job)
    except TimedOut:
        _reset(bus, name)
        raise TimedOut(f"systemd did not make the unit {name} within {_JOB_TIMEOUT_S:g} s") from None
    except BusError as error:
        raise CgroupError(f"systemd does not make the unit {name}: {error}") from None
    if result != "done":
        _reset(bus, name)
        raise CgroupError(f"systemd could not make the unit {name}: the job ended with {result!r}")


def _follow_jobs(bus: Bus) -> None:
    """Have systemd say when a job ends, and the bus hand it on (without one it comes anyway)."""
    call(bus, "Subscribe")
    rule = f"type='signal',sender='{_NAME}',interface='{_MANAGER}',member='JobRemoved'"
    try:
        bus.call(BUS_NAME, "/org/freedesktop/DBus", BUS_NAME, "AddMatch", "s", rule)
    except BusError:
        return


def _await_job(bus: Bus, job: str) -> str:
    return str(bus.await_signal("JobRemoved", lambda body: len(body) == 4 and body[1] == job, _JOB_TIMEOUT_S)[3])


def _reset(bus: Bus, name: str) -> None:
    try:
        call(bus, "ResetFailedUnit", "s", name)
    except MinirtError:  # it has not failed, or is gone
        return


def stop(unit: Unit) -> None:
    """Have systemd give the unit up, and forget that it failed. Nothing happens where it is gone, or systemd is."""
    settle(unit)
    try:
        with open_bus(unit.whose) as bus:
            _follow_jobs(bus)
            try:
                (job,) = call(bus, "StopUnit", "ss", unit.name, "replace")
                _await_job(bus, job)
            except BusError:  # gone already: its last process has ended
                pass
            _reset(bus, unit.name)
    except Unavailable:
        return


def set_properties(unit: Unit, resources: Resources, v2: bool, devices: bool) -> Resources:
    """Set what systemd has words for, until the machine is rebooted; the resources as they are to be written to the files.

    Raises `CgroupError`, and `Unavailable` and `TimedOut`.
    """
    with open_bus(unit.whose) as bus:
        # Only some properties depend on it: what asks for none is spared the question.
        known: list[int] = []

        def version() -> int:
            if not known:
                known.append(read_version(bus))
            return known[0]

        resources = rounded(resources)
        properties = [
            *(device_properties(resources, version) if devices else ()),
            *(properties_v2(resources, version) if v2 else properties_v1(resources, version)),
        ]
        if properties:
            try:
                call(bus, "SetUnitProperties", "sba(sv)", unit.name, True, properties)
            except BusError as error:
                raise CgroupError(f"systemd does not set the limits of {unit.name}: {error}") from None
    return resources
