"""The verbs that print lists: list and ps."""

from __future__ import annotations

import os
import sys

from harness.minirt.container import document, state
from harness.minirt.errors import UsageError, WrongState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.minirt.oci.arguments import Words
    from harness.minirt.oci.command import Context


def list_containers(context: Context, words: Words) -> int:
    """Print every container of the root."""
    form = _format(words)
    if words.has("quiet"):
        sys.stdout.write("".join(f"{id}\n" for id in state.list_ids(context.root)))
        return 0
    found = [
        state.state_document(container, state.status_of(context.root, container))
        for container in state.containers(context.root)
    ]
    if form == "json":
        sys.stdout.write(document.render(found) + "\n")
        return 0
    rows = [("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")]
    rows += [
        (item["id"], str(item["pid"]), item["status"], item["bundle"], item["created"], item["owner"] or "root")
        for item in found
    ]
    sys.stdout.write(_table(rows))
    return 0


def list_processes(context: Context, words: Words) -> int:
    """Print the processes of a container: pids as JSON, or a table."""
    form = _format(words)
    container = state.load(context.root, words.arguments[0])
    if not state.is_alive(container):
        raise WrongState("container not running")
    pids = container.cgroup.pids()
    if form == "json":
        sys.stdout.write(document.render(pids) + "\n")
        return 0
    rows = [("UID", "PID", "PPID", "CMD")]
    for pid in pids:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
            with open(f"/proc/{pid}/stat") as file:
                parent = file.read().rpartition(")")[2].split()[1]
            rows.append((str(os.stat(f"/proc/{pid}").st_uid), str(pid), parent, command))
        except (FileNotFoundError, ProcessLookupError):
            continue
    sys.stdout.write(_table(rows))
    return 0


def _format(words: Words) -> str:
    form = words.value("format", "table")
    if form not in ("table", "json"):
        raise UsageError(f"--format {form!r} is neither table nor json")
    return form


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["   ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines) + "\n"
