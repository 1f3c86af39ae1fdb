"""containerd's own services, driven by its ``ctr``: images, snapshots, containers and tasks, no pods and no CRI.

``ctr containers create`` can put a container neither into a cgroup of ours nor, so far, on another snapshot than its
own; so `create` mounts a writable snapshot of the image (``ctr images mount --rw``) and hands over a whole ``config.json``
with that as its root, and `remove` takes both down.

The stdout and stderr of containers, and of commands inside them, are kept apart by a logger that the shim starts
(``--log-uri binary://``): a shell script of two ``cat``, by way of which `logs` and `exec` have them. It runs beside the shim,
on the engine's account: two small processes for each container, where a real user of these services has a logger too.
What ``ctr tasks exec`` copies by itself is not to be relied on: it gives up pipes that it has not come to open when the
command ends, so that a short command on a busy machine now and then loses its output.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlencode

from harness.client.crilog import lines_of
from harness.client.oci_config import oci_config
from harness.client.pidfile import watch
from harness.client.tool import Tool, by_stderr, find_tool
from harness.client.verbs import Site
from harness.clock import wait_until
from harness.command import Completed
from harness.errors import CallTimeout, Conflict, MachineError, NotFound, Refused
from harness.model.container import ContainerSpec, ExecResult, LogLine, Network, Stream, Tally
from harness.model.lifecycle import Contract, Operation, State

NAMESPACE = "seatrial"
KILL_TIMEOUT_S = 10.0
_SHIM_STOPPED = 3
"""containerd.v1.types.Status"""
_DIGEST = re.compile(r"\b(?:index|manifest)-(sha256:[0-9a-f]{64})")
_STATES = {
    "CREATED": State.CREATED,
    "RUNNING": State.RUNNING,
    "PAUSED": State.PAUSED,
    "PAUSING": State.PAUSED,
    "STOPPED": State.STOPPED,
}
_LOGGER = """\
# Started by a shim: what is printed comes in by descriptors 3 (stdout) and 4 (stderr); closing 5 says that we are ready.
# The shim asks the logger of a process that has ended to go, perhaps before it has read everything.
trap '' TERM
cat <&3 >"$1/$CONTAINER_ID/stdout" 4<&- 5>&- &
"""
_OF_CONTAINER = """\
exec 3<&- 5>&-
exec cat <&4 >"$1/$CONTAINER_ID/stderr"
"""
_OF_COMMAND = """\
cat <&4 >"$1/$CONTAINER_ID/stderr" 3<&- 5>&- &
exec 3<&- 4<&- 5>&-
wait
"""
"""The shim of a command waits for its logger, which goes when all is written."""


class Ctr:
    """`Client` by ``ctr``. Containers are called as their spec is."""

    contract = Contract.NATIVE

    def __init__(self, site: Site) -> None:
        """Raises `MachineError` where there is no ``ctr``, or one that cannot choose the OCI runtime asked for."""
        if site.socket is None:
            raise ValueError("ctr needs a socket")
        self.tally = Tally()
        self._site = site
        self._exec_ids = itertools.count(1)
        prefix = (find_tool("ctr"), "--address", str(site.socket), "--namespace", NAMESPACE)
        self._tool = Tool(site.runner, prefix, self.tally, by_stderr)
        self._runtime = self._runtime_words(site.handler)
        self._folder = site.workspace / "containers"
        self._commands = site.workspace / "commands"
        self._logger = _write_logger(self._folder, _OF_CONTAINER)
        self._command_logger = _write_logger(self._commands, _OF_COMMAND)

    def via(self, operation: Operation) -> str:
        return "binary logger" if operation is Operation.LOGS else ""

    def version(self) -> str:
        _, _, server = self._tool.run("version").text.partition("Server:")
        found = re.search(r"Version:\s*(\S+)", server)
        return f"containerd {found[1] if found else 'of unknown version'}"

    def pull(self, image: str) -> str:
        """Its manifest's (or index') digest, from what ``ctr`` prints while it pulls."""
        plain = ("--plain-http",) if re.match(r"(127\.|localhost\b|\[::1\])", image) else ()
        printed = self._call("images pull", *plain, image).text
        found = _DIGEST.search(printed) or re.search(r"(sha256:[0-9a-f]{64})", printed)
        if not found:
            raise Refused(f"ctr pulled {image} and told no digest: {printed[-200:]!r}", "0")
        return found[1]

    def has_image(self, image: str) -> bool:
        return bool(self._call("images ls", "--quiet", f"name=={image}").stdout.strip())

    def remove_image(self, image: str) -> None:
        """``ctr`` only warns of an image that is not there, and ends well; that is `NotFound` all the same."""
        done = self._call("images rm", "--sync", image)
        if b"image not found" in done.stderr:
            raise NotFound(done.stderr.decode(errors="replace").strip(), str(done.status))

    def run_sandbox(self, name: str, network: Network) -> str:
        raise Refused("containerd's own services have no pods for ctr")

    def sandbox_ready(self, sandbox: str) -> bool:
        return False

    def sandbox_exists(self, sandbox: str) -> bool:
        return False

    def stop_sandbox(self, sandbox: str) -> None:
        raise Refused("containerd's own services have no pods for ctr")

    def remove_sandbox(self, sandbox: str) -> None:
        raise Refused("containerd's own services have no pods for ctr")

    def create(self, spec: ContainerSpec) -> str:
        """Its network namespace is the engine's, whatever `spec` says."""
        own = self._folder / spec.name
        if own.exists():
            raise Conflict(f"{spec.name} has been created already")
        rootfs = own / "rootfs"
        rootfs.mkdir(parents=True)
        config = own / "config.json"
        config.write_text(json.dumps(oci_config(spec, rootfs, self._site.cgroup_parent, readonly=False)))
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, own)
            self._call("images mount", "--rw", spec.image, str(rootfs))
            undo.callback(self._unmount, rootfs)
            self._call("containers create", *self._runtime, "--config", str(config), spec.name)
            undo.pop_all()
        return spec.name

    def start(self, container: str) -> None:
        own = self._folder / container
        words = ("--detach", "--log-uri", self._logger, "--pid-file", str(own / "pid"), container)
        self._call("tasks start", *words)

    def exec(self, container: str, argv: Sequence[str], timeout_s: float = 10) -> ExecResult:
        """``ctr`` ends as the command does; an error of its own is status 1 and a line that it signs."""
        name = f"exec-{next(self._exec_ids)}"
        own = self._commands / name
        own.mkdir()
        words = ("--exec-id", name, "--log-uri", self._command_logger, container, *argv)
        done = self._tool.attempt("tasks", "exec", *words, timeout_s=timeout_s, call="tasks exec")
        if done.status == 1 and done.stderr.startswith(b"ctr: "):
            raise by_stderr(done)
        out, err = ((own / stream.value).read_bytes() for stream in Stream)
        shutil.rmtree(own)
        return ExecResult(out, err, done.status)

    def pause(self, container: str) -> None:
        self._call("tasks pause", container)

    def resume(self, container: str) -> None:
        self._call("tasks resume", container)

    def logs(self, container: str) -> list[LogLine]:
        """All of stdout, then all of stderr. Raises `NotFound` for a container that was not created here."""
        own = self._folder / container
        if not own.exists():
            raise NotFound(f"no output of a container {container}")
        return [
            LogLine(stream, text)
            for stream in Stream
            if (own / stream.value).exists()
            for text in lines_of((own / stream.value).read_bytes())
        ]

    def state(self, container: str) -> State:
        """That of its task; without a task a container is created, or not there at all: that is asked second."""
        status = parse_tasks(self._call("tasks ls").text).get(container)
        if status is None:
            try:
                self._call("containers info", container)
            except NotFound:
                return State.ABSENT
            return State.CREATED
        if status not in _STATES:
            raise Refused(f"containerd reports the status {status} of {container}")
        return _STATES[status]

    def exit_code(self, container: str) -> int | None:
        """Asked of the shim (``ctr shim state``): of the commands that tell, the one that does not delete the task."""
        answer = json.loads(self._tool.run("shim", "--id", container, "state", call="shim state").stdout)
        stopped = answer.get("status") in (_SHIM_STOPPED, "STOPPED")
        return int(answer.get("exit_status", 0)) if stopped else None

    def stop(self, container: str, grace_s: float) -> None:
        """``kill SIGTERM``; where the first process has not ended after `grace_s`, ``kill SIGKILL``.

        Raises `CallTimeout` for a process that survives SIGKILL, or a task that is not reported as stopped after that,
        by `KILL_TIMEOUT_S`.
        """
        with watch(self._folder / container / "pid") as ended:
            self._call("tasks kill", "--signal", "SIGTERM", container)
            if not ended(grace_s):
                with contextlib.suppress(Conflict):  # it ended in this very moment
                    self._call("tasks kill", "--signal", "SIGKILL", container)
                if not ended(KILL_TIMEOUT_S):
                    raise CallTimeout(f"{container} has been sent SIGKILL and goes on", "timeout")
        wait_until(lambda: self.state(container) is not State.RUNNING, KILL_TIMEOUT_S, f"{container} to be stopped")

    def remove(self, container: str) -> None:
        """The container and its stopped task, and then the snapshot on which it ran."""
        self._call("containers delete", container)
        own = self._folder / container
        if own.exists():
            self._unmount(own / "rootfs")
            shutil.rmtree(own)

    def close(self) -> None:
        pass

    def _call(self, command: str, *words: str) -> Completed:
        return self._tool.run(*command.split(), *words, call=command)

    def _unmount(self, rootfs: Path) -> None:
        self._call("images unmount", "--rm", str(rootfs))

    def _runtime_words(self, handler: str) -> tuple[str, ...]:
        """How ``containers create`` is told of the OCI runtime; not every version of it can be."""
        default = shutil.which("runc")
        if handler in ("", "runc") or (default and Path(handler).resolve() == Path(default).resolve()):
            return ()
        usage = self._tool.attempt("containers", "create", "--help").stdout
        if b"--runc-binary" not in usage:
            raise MachineError(
                f"ctr containers create cannot choose the OCI runtime {handler}",
                "take containerd:grpc instead, or containerd 2",
            )
        return ("--runc-binary", handler)


def _write_logger(folder: Path, rest: str) -> str:
    """The URI of a logger that writes below `folder`, which is made.

    What stands in the URI's query becomes words of the program (containerd, cmd/containerd-shim-runc-v2/process/io.go). It is
    the shell that reads the script: nothing can be executed in ``/run`` where systemd mounts it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    script = folder.with_suffix(".sh")
    script.write_text(_LOGGER + rest)
    return f"binary:///bin/sh?{urlencode({str(script): str(folder)})}"


def parse_tasks(listing: str) -> dict[str, str]:
    """Status by container, of what ``ctr tasks ls`` prints: a heading, then rows of id, pid and status."""
    rows = [row.split() for row in listing.splitlines()[1:]]
    return {row[0]: row[-1] for row in rows if len(row) == 3}
