"""An OCI runtime's own command line (runc's, which all others speak): no engine, no images, no pods.

The runtime is the subject here, so its processes go on the engine's account. A container's stdout and stderr are two
files that it inherits from ``create``; `logs` reads them (``via`` stdio), without times. What the runtime itself has to
say goes to a log of its own (``--log``), as under containerd's shim.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from harness.client.crilog import lines_of
from harness.client.oci_config import oci_config
from harness.client.pidfile import watch
from harness.client.refusals import COMMAND_WORDS, by_words
from harness.client.tool import Tool
from harness.client.verbs import Site
from harness.command import Completed, Group
from harness.errors import CallTimeout, Conflict, NotFound, Refused, RuntimeRefusal
from harness.model.container import ContainerSpec, ExecResult, LogLine, Network, Stream, Tally
from harness.model.lifecycle import Contract, Operation, State

KILL_TIMEOUT_S = 10.0
FLAGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"runsc": ("--platform=ptrace", "--network=none", "--ignore-cgroups")}
)
"""What a runtime needs on its command line to work in an arena: gVisor's own network and cgroups want more of a machine
than a container of ours asks for, and its platforms other than ptrace want a processor with virtualisation."""
_STATES = {
    "created": State.CREATED,
    "running": State.RUNNING,
    "paused": State.PAUSED,
    "stopped": State.STOPPED,
}


class Oci:
    """`Client` for `Site.handler`, the runtime's program. Containers are called as their spec is."""

    contract = Contract.OCI

    def __init__(self, site: Site) -> None:
        self.tally = Tally()
        self._site = site
        self._bundles = site.workspace / "bundles"
        self._bundles.mkdir(parents=True, exist_ok=True)
        self._log = site.workspace / "oci.log"
        flags = ("--root", str(site.workspace / "oci"), "--log", str(self._log), "--log-format", "json")
        prefix = (site.handler, *flags_of(site.handler), *flags)
        self._tool = Tool(site.runner, prefix, self.tally, self._refusal, Group.ENGINE)
        self._plain = Tool(site.runner, (site.handler,), self.tally, self._refusal, Group.ENGINE)

    def via(self, operation: Operation) -> str:
        return "stdio" if operation is Operation.LOGS else ""

    def version(self) -> str:
        return self._plain.run("--version").text.partition("\n")[0].strip()

    def pull(self, image: str) -> str:
        raise Refused("an OCI runtime has no images")

    def has_image(self, image: str) -> bool:
        return image in self._site.rootfs

    def remove_image(self, image: str) -> None:
        raise Refused("an OCI runtime has no images")

    def run_sandbox(self, name: str, network: Network) -> str:
        raise Refused("an OCI runtime has no pods")

    def sandbox_ready(self, sandbox: str) -> bool:
        return False

    def sandbox_exists(self, sandbox: str) -> bool:
        return False

    def stop_sandbox(self, sandbox: str) -> None:
        raise Refused("an OCI runtime has no pods")

    def remove_sandbox(self, sandbox: str) -> None:
        raise Refused("an OCI runtime has no pods")

    def create(self, spec: ContainerSpec) -> str:
        """The network namespace is the runtime's own, whatever `spec` says. Raises `NotFound` for an unknown image."""
        if spec.image not in self._site.rootfs:
            raise NotFound(f"{spec.image} has not been unpacked")
        bundle = self._bundles / spec.name
        fresh = not bundle.exists()
        if fresh:
            bundle.mkdir()
            config = oci_config(spec, self._site.rootfs[spec.image], self._site.cgroup_parent)
            (bundle / "config.json").write_text(json.dumps(config))
        # A second create of a name has to be refused; whatever the runtime prints then is not the container's.
        out_path, err_path = (bundle / "stdout", bundle / "stderr") if fresh else (Path(os.devnull), Path(os.devnull))
        with _appended(out_path) as out, _appended(err_path) as err:
            words = ("create", "--bundle", str(bundle), "--pid-file", str(bundle / "pid"), spec.name)
            done = self._tool.attempt(*words, stdout_fd=out, stderr_fd=err)
        if done.status:
            refusal = self._refusal(done, err_path)
            if fresh:
                shutil.rmtree(bundle)
            raise refusal
        return spec.name

    def start(self, container: str) -> None:
        self._tool.run("start", container)

    def exec(self, container: str, argv: Sequence[str], timeout_s: float = 10) -> ExecResult:
        """A failure of the runtime is told from one of the command by the runtime's log: the command does not write it."""
        done = self._tool.attempt("exec", container, *argv, timeout_s=timeout_s)
        if done.status and (error := self._logged()):
            raise by_words(error, COMMAND_WORDS)(error, str(done.status))
        return ExecResult(done.stdout, done.stderr, done.status)

    def pause(self, container: str) -> None:
        self._tool.run("pause", container)

    def resume(self, container: str) -> None:
        self._tool.run("resume", container)

    def logs(self, container: str) -> list[LogLine]:
        """All of stdout, then all of stderr. Raises `NotFound` for a container that was not created here."""
        bundle = self._bundles / container
        if not bundle.exists():
            raise NotFound(f"no output of a container {container}")
        return [LogLine(stream, text) for stream in Stream for text in lines_of((bundle / stream.value).read_bytes())]

    def state(self, container: str) -> State:
        try:
            said = self._tool.run("state", container).text
        except NotFound:
            return State.ABSENT
        try:
            return _STATES[json.loads(said)["status"]]
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(f"state printed {said[:200]!r}, which tells no status that there is") from error

    def exit_code(self, container: str) -> int | None:
        return None

    def stop(self, container: str, grace_s: float) -> None:
        """``kill TERM``; where the first process has not ended after `grace_s`, ``kill KILL``.

        Its end is awaited in the kernel, by the pid that the runtime wrote down: asking the runtime again and again would
        go on its account. Raises `CallTimeout` for a process that survives SIGKILL by `KILL_TIMEOUT_S`.
        """
        with watch(self._bundles / container / "pid") as ended:
            self._tool.run("kill", container, "TERM")
            if ended(grace_s):
                return
            with contextlib.suppress(Conflict):  # it ended in this very moment
                self._tool.run("kill", container, "KILL")
            if not ended(KILL_TIMEOUT_S):
                raise CallTimeout(f"{container} has been sent SIGKILL and goes on", "timeout")

    def remove(self, container: str) -> None:
        self._tool.run("delete", container)
        shutil.rmtree(self._bundles / container, ignore_errors=True)

    def close(self) -> None:
        pass

    def _refusal(self, done: Completed, stderr: Path = Path(os.devnull)) -> RuntimeRefusal:
        """`stderr` is the file that a runtime without captured stderr wrote to."""
        text = self._logged() or (done.stderr or stderr.read_bytes()).decode(errors="replace").strip()
        return by_words(text, COMMAND_WORDS)(text, str(done.status))

    def _logged(self) -> str:
        """The error that the runtime logged last, "" for none; the log is empty afterwards."""
        try:
            text = self._log.read_text(errors="replace")
        except FileNotFoundError:
            return ""
        self._log.unlink()
        return last_error(text)


def flags_of(program: str) -> tuple[str, ...]:
    """The flags that a runtime's program is always given."""
    return FLAGS.get(Path(program).name, ())


def last_error(log: str) -> str:
    """The message of the last error in a log of JSON objects; what is none is passed over.

    An object is a line for most runtimes, several for others (crun 1.28).
    """
    found, decoder, start = "", json.JSONDecoder(), 0
    while (start := log.find("{", start)) >= 0:
        try:
            entry, start = decoder.raw_decode(log, start)
        except ValueError:
            # No object, or one that was cut off: the next begins a line.
            start = log.find("\n", start)
            if start < 0:
                break
            continue
        if entry.get("level") in ("error", "fatal"):
            found = str(entry.get("msg", "")).strip()
    return found


@contextlib.contextmanager
def _appended(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
