"""linux.intelRdt: the resctrl group of a container, as the kernel's Documentation/filesystems/resctrl.rst describes it.

Imported only where a config has it. A group that the container's own id names is made and removed with the container; one
that ``closID`` names may be others' too, and stays.
"""

from __future__ import annotations

import errno
import os

from harness.minirt.container.files import read_file, write_file
from harness.minirt.container.record import Record
from harness.minirt.errors import StepError, Unsupported, step_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.minirt.container.reader import Reader


class IntelRdt(Record):
    """``linux.intelRdt``. `schemata`: the lines to write, in their order."""

    clos: str = ""
    schemata: tuple[str, ...] = ()
    monitoring: bool = False


class Group(Record):
    """Where a container goes."""

    top: str
    """where resctrl is mounted"""
    folder: str
    own: bool
    """whether it is the container's alone"""
    schemata: tuple[str, ...]
    monitor: str = ""
    """its monitoring group; empty: none of its own"""

    @property
    def removed(self) -> str:
        """What goes with the container; empty: nothing."""
        return self.folder if self.own else self.monitor


def parse_rdt(entry: Reader) -> IntelRdt:
    """Read ``linux.intelRdt``; raises `SpecError`."""
    clos = entry.text("closID")
    if clos != "/" and ("/" in clos or clos in (".", "..")):
        raise entry.fail("closID", f"{clos!r} is not the name of a folder")
    lines = []
    for key, prefix in (("l3CacheSchema", ""), ("memBwSchema", "MB:")):
        line = entry.text(key)
        if "\n" in line or (line and not line.startswith(prefix)):
            raise entry.fail(
                key, f"{line!r} is not a line that begins with {prefix}" if prefix else "has several lines"
            )
        lines += [line] if line else []
    for index, line in enumerate(entry.texts("schemata")):
        if "\n" in line or not line:
            raise entry.fail(f"schemata[{index}]", f"{line!r} is not one line")
        lines.append(line)
    return IntelRdt(clos, tuple(lines), entry.flag("enableMonitoring"))


def find_resctrl(mountinfo: str) -> str:
    """Where resctrl is mounted, in the text of ``/proc/self/mountinfo``; empty: nowhere."""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("resctrl "):
            return left.split(" ")[4]
    return ""


def plan_group(rdt: IntelRdt, id: str) -> Group:
    """The group for the container `id`. Raises `Unsupported`; nothing is made."""
    top = find_resctrl(read_file("/proc/self/mountinfo"))
    if not top:
        raise Unsupported("linux.intelRdt: no resctrl file system is mounted on this machine")
    return group_below(top, rdt, id)


def group_below(top: str, rdt: IntelRdt, id: str) -> Group:
    """The same for a resctrl that is mounted at `top`. Raises `Unsupported`."""
    folder = top if rdt.clos == "/" else f"{top}/{rdt.clos or id}"
    if rdt.clos and os.path.isdir(folder):
        known = {_parsed(line) for line in read_file(f"{folder}/schemata").splitlines()} if rdt.schemata else set()
        for line in rdt.schemata:
            if not any(_agrees(_parsed(line), there) for there in known):
                raise Unsupported(f"linux.intelRdt: closID {rdt.clos!r} exists, and does not have the schema {line!r}")
    elif rdt.clos and not rdt.schemata:
        raise Unsupported(f"linux.intelRdt.closID: {folder} does not exist, and there is no schema to make it with")
    elif not rdt.clos and os.path.exists(folder):
        raise Unsupported(f"linux.intelRdt: {folder} is there already, and would have to be the container's own")
    return Group(top, folder, not rdt.clos, rdt.schemata, f"{folder}/mon_groups/{id}" if rdt.monitoring else "")


def _parsed(line: str) -> tuple[str, frozenset[tuple[int, str]]]:
    """A schema as the kernel sees it: blanks, leading zeros and the order of the caches mean nothing."""
    resource, _, rest = line.partition(":")
    pairs = set()
    for part in rest.split(";"):
        cache, _, value = part.partition("=")
        if cache.strip().isdigit():
            pairs.add((int(cache), value.strip().lower().lstrip("0") or "0"))
    return resource.strip(), frozenset(pairs)


def _agrees(wanted: tuple[str, frozenset[tuple[int, str]]], there: tuple[str, frozenset[tuple[int, str]]]) -> bool:
    """Whether what is there has all that is wanted; a schema may leave caches out."""
    return wanted[0] == there[0] and wanted[1] <= there[1]


def create(group: Group) -> None:
    """Make what is missing of the group, with its schemata. Raises `StepError`; nothing is left then."""
    made = []
    try:
        try:
            os.mkdir(group.folder, 0o755)
        except FileExistsError:
            if group.own:
                raise
        else:
            made.append(group.folder)
            if group.schemata:
                write_file(f"{group.folder}/schemata", "".join([f"{line}\n" for line in group.schemata]))
        if group.monitor:
            os.mkdir(group.monitor, 0o755)
            made.append(group.monitor)
    except OSError as error:
        for folder in reversed(made):
            remove(folder)
        raise _step_error("make the resctrl group", group, error) from None


def assign(folders: Sequence[str], pid: int) -> None:
    """Move a process into a group, and then into its monitoring group; what it starts follows it. Raises `StepError`."""
    try:
        for folder in folders:
            if folder:
                write_file(f"{folder}/tasks", str(pid))
    except OSError as error:
        raise step_error("join the resctrl group", error) from None


def remove(folder: str) -> None:
    """Remove a group, with its monitoring groups; one that has gone is no error."""
    try:
        os.rmdir(folder)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise step_error("remove the resctrl group", error) from None


def _step_error(step: str, group: Group, error: OSError) -> StepError:
    """With the kernel's own words about it, which stand in a file."""
    try:
        why = read_file(f"{group.top}/info/last_cmd_status").strip()
    except OSError:
        why = ""
    about = f" ({os.fsdecode(error.filename)})" if error.filename else ""
    return StepError(step, error.errno or 0, f"{os.strerror(error.errno or 0).lower()}{about}{why and ': ' + why}")
