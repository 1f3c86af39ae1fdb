"""The verbs that print lists: list and ps."""

from __future__ import annotations

import os
import sys
import time

from harness.minirt.container import document, state
from harness.minirt.errors import ContainerMissing, MinirtError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from harness.minirt.oci.arguments import Words
    from harness.minirt.oci.command import Context

_NARROWEST = 12
_TICKS = os.sysconf("SC_CLK_TCK")


def list_containers(context: Context, words: Words) -> int:
    """Print every container of the root, sorted by id; what cannot be read of one is said, and the others follow."""
    form = _format(words)
    found = []
    for id in state.list_ids(context.root):
        try:
            container = state.load(context.root, id)
            content = state.state_document(container, state.status_of(context.root, container))
            content["owner"] = state.owner_of(context.root, id)
        except (ContainerMissing, FileNotFoundError):  # it has just been deleted
            continue
        except MinirtError as error:
            sys.stderr.write(f"load container {id}: {error}\n")
            continue
        found.append(content)
    if words.has("quiet"):
        sys.stdout.write("".join(f"{content['id']}\n" for content in found))
    elif form == "json":
        sys.stdout.write(document.render(found) + "\n")
    else:
        names = ("id", "pid", "status", "bundle", "created", "owner")
        rows = [[name.upper() for name in names], *([str(content[name]) for name in names] for content in found)]
        sys.stdout.write(_table(rows))
    return 0


def list_processes(context: Context, words: Words) -> int:
    """Print the processes of a container: pids as JSON, or a table as ps(1) prints it.

    Options of ps(1) can follow the id. Without them (``-ef`` is meant then) it is not needed.
    """
    form = _format(words)
    id, *options = words.arguments
    pids = state.pids_of(state.load(context.root, id))
    if form == "json":
        sys.stdout.write(document.render(pids) + "\n")
    elif options:
        sys.stdout.write(_filter(_run_ps(options), pids))
    else:
        sys.stdout.write(_own_table(pids))
    return 0


def _run_ps(options: Sequence[str]) -> str:
    import shutil
    import subprocess

    program = shutil.which("ps")
    if program is None:
        raise UsageError("options of ps need the program ps, which is not installed on this machine")
    done = subprocess.run([program, *options], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        raise MinirtError(f"ps {' '.join(options)}: exit status {done.returncode}: {said}")
    return done.stdout.decode(errors="replace")


def _filter(text: str, pids: Sequence[int]) -> str:
    """The lines of those processes. Raises `UsageError` where the options leave out the pid."""
    title, *lines = text.splitlines()
    names = title.split()
    if "PID" not in names:
        raise UsageError("couldn't find PID field in ps output")
    wanted, column = {str(pid) for pid in pids}, names.index("PID")
    return "".join(f"{line}\n" for line in (title, *(line for line in lines if line.split()[column] in wanted)))


def _own_table(pids: Sequence[int]) -> str:
    """What ``ps -ef`` prints of them."""
    lines = [f"{'UID':<8} {'PID':>7} {'PPID':>7} {'C':>2} {'STIME':>5} {'TTY':<8} {'TIME':>8} CMD"]
    with open("/proc/uptime") as file:
        booted = time.time() - float(file.read().split()[0])
    for pid in pids:
        try:
            lines.append(_own_line(pid, booted))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return "".join(f"{line}\n" for line in lines)


def _own_line(pid: int, booted: float) -> str:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    with open(f"/proc/{pid}/stat") as file:
        before, _, after = file.read().rpartition(")")
    fields = after.split()
    user = _user(os.stat(f"/proc/{pid}").st_uid)
    used_s = (int(fields[11]) + int(fields[12])) / _TICKS
    started = booted + int(fields[19]) / _TICKS
    age_s = max(time.time() - started, 1)
    form = "%H:%M" if age_s < 86400 else "%b%d"
    spent = f"{int(used_s) // 3600:02}:{int(used_s) // 60 % 60:02}:{int(used_s) % 60:02}"
    return (
        f"{user:<8} {pid:>7} {fields[1]:>7} {min(int(100 * used_s / age_s), 99):>2} "
        f"{time.strftime(form, time.localtime(started)):>5} {_terminal(int(fields[4])):<8} {spent:>8} "
        f"{command or '[' + before.partition('(')[2] + ']'}"
    )


def _user(uid: int) -> str:
    import pwd

    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
    return name if len(name) <= 8 else f"{name[:7]}+"


def _terminal(number: int) -> str:
    """The terminal's name, ``?`` for none (proc(5): the device number as the kernel writes it)."""
    major, minor = os.major(number), os.minor(number)
    if 136 <= major < 144:
        return f"pts/{minor + (major - 136) * 256}"
    if major == 4:
        return f"tty{minor}" if minor < 64 else f"ttyS{minor - 64}"
    return "?"


def _format(words: Words) -> str:
    form = words.value("format", "table")
    if form not in ("table", "json"):
        raise UsageError("invalid format option")
    return form


def _table(rows: Sequence[Sequence[Any]]) -> str:
    widths = [max(_NARROWEST, 3 + max(map(len, column))) for column in zip(*rows, strict=True)]
    lines = ["".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines) + "\n"
