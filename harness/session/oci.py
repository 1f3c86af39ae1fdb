"""`OciTrial`: containers of one OCI runtime, made from any configuration by any command line, one test at a time."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from harness import paths
from harness.client.oci_door import CALL_TIMEOUT_S, Command, OciCommandLine, OciDoor
from harness.client.pidfile import watch
from harness.clock import wait_until
from harness.command import Completed, Group
from harness.errors import NotExpressible, Refused, WaitTimeout
from harness.keeper import ladder
from harness.linux import cgroups
from harness.session.oci_box import PROBE, Box, plant
from harness.session.oci_config import Path as FieldPath
from harness.session.oci_config import base_config, changed, parts_of
from harness.session.oci_facts import Facts, parse_facts
from harness.session.trial import Trial

T = TypeVar("T")
SLEEP = ("/bin/sleep", "3600")
PATIENCE_S = 15.0
MAKERS = ("create", "run", "restore")
"""Verbs after which there may be a container, called as their last word."""
CORE_OF_V2 = ("devices", "freezer", "cpuacct")
"""Controllers of v1 whose work v2 does in every cgroup, without a controller of the name."""


@dataclass(slots=True)
class OciTrial:
    """What the tests of ``suites/oci`` hold in hands. `tidy` removes what one test has made."""

    trial: Trial
    door: OciDoor
    """the way of the test's own commands; a proof puts a broken one here"""
    root: Path
    """where the runtime keeps its states"""
    patience_s: float = PATIENCE_S
    """how long a test waits for what has to come; a proof waits for what never comes, and not as long"""
    _honest: OciDoor = field(init=False)
    _pristine: Path = field(init=False)
    _bundles: Path = field(init=False)
    _serial: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _boxes: list[Box] = field(default_factory=list)
    _ids: set[str] = field(default_factory=set)
    _features: dict[str, Any] | None = None
    _asked: bool = False
    _kernel: str | None = None

    def __post_init__(self) -> None:
        self._honest = self.door
        self._pristine = self.trial.arena.root / "rootfs"
        self._bundles = self.trial.arena.root / "bundles"
        self._bundles.mkdir(mode=0o711, exist_ok=True)
        shutil.copy(paths.fixtures() / "oci" / "probe.sh", self._pristine / PROBE.lstrip("/"))

    def __repr__(self) -> str:
        return f"<OCI runtime of {self.trial.subject.name}>"

    # Commands

    def attempt(
        self,
        verb: str,
        *words: str,
        globals: Sequence[str] = (),
        under: Sequence[str] = (),
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Completed:
        """Run a command to its end, whatever its status."""
        if verb in MAKERS and words:
            self._ids.add(words[-1])
        return self.door.call(
            Command(verb, words, tuple(globals), tuple(under), input=input, env=env, timeout_s=timeout_s)
        )

    def do(self, verb: str, *words: str, **how: Any) -> Completed:
        """Run a command that has to succeed. Raises `Refused`."""
        done = self.attempt(verb, *words, **how)
        if done.status:
            raise Refused(f"{verb}: {told(done) or 'no reason given'}", str(done.status))
        return done

    def refused(self, verb: str, *words: str, **how: Any) -> str:
        """Run a command that has to fail, with an error on stderr; that error. Raises `AssertionError`."""
        done = self.attempt(verb, *words, **how)
        assert done.status != 0, f"{verb} {' '.join(words)} was accepted"
        assert told(done), f"{verb} {' '.join(words)} ended with {done.status}, and without a word"
        return told(done)

    def shell(self, script: str) -> str:
        """What a script prints that runs on the machine, in the arena's namespaces. Raises `CommandError`."""
        return self.trial.arena.run(("/bin/sh", "-c", script), timeout_s=20, group=Group.HARNESS).check().text.strip()

    def wait(self, predicate: Callable[[], T], what: str) -> T:
        """Wait until `predicate` is true; its value. Raises `WaitTimeout`."""
        return wait_until(predicate, self.patience_s, f"{self.trial.subject.name}: {what}")

    # What the runtime and the machine can do

    @property
    def features(self) -> dict[str, Any] | None:
        """The document of the verb ``features``; None where the runtime has none."""
        if not self._asked:
            done = self._honest.call(Command("features"))
            with contextlib.suppress(ValueError):
                said = json.loads(done.stdout) if done.status == 0 else None
                self._features = said if isinstance(said, dict) else None
            self._asked = True
        return self._features

    def feature(self, path: str) -> Any:
        """A field of ``features``; None where there is none."""
        found: Any = self.features
        for part in parts_of(path):
            found = found.get(part) if isinstance(found, dict) else None
        return found

    def needs_feature(self, path: str, value: Any = True) -> None:
        """Go on only where ``features`` says `value` in a field, or has it in a list. Raises `NotExpressible`."""
        found = self.feature(path)
        if not (value in found if isinstance(found, list) else found == value):
            lack = f"does not report {value} in {path}" if self.features else "has no features document"
            raise NotExpressible(self.trial.subject.name, f"{lack} (features.md)")

    def needs_verb(self, verb: str) -> None:
        """Go on only where the runtime knows `verb`. Raises `NotExpressible`."""
        done = self._honest.call(Command(verb, ("--help",)))
        # gVisor's command ends with an error after each help; that of a verb it knows starts with the verb.
        if done.status and not (done.stdout + done.stderr).lstrip().startswith(f"{verb} ".encode()):
            raise NotExpressible(self.trial.subject.name, f"has no verb {verb}")

    def needs_flag(self, verb: str, flag: str) -> None:
        """Go on only where the runtime's own help for `verb` speaks of `flag`. Raises `NotExpressible`."""
        done = self._honest.call(Command(verb, ("--help",)))
        if f"-{flag.lstrip('-')}".encode() not in done.stdout + done.stderr:
            raise NotExpressible(self.trial.subject.name, f"has no flag {flag} of {verb}")

    @property
    def spec(self) -> tuple[int, ...]:
        """The newest version of the specification that the runtime says it knows."""
        said = self.feature("ociVersionMax")
        if not said:
            lines = self._honest.call(Command("", ("--version",))).text.splitlines()
            said = next((line.partition(":")[2].strip() for line in lines if line.startswith("spec:")), "1.0.0")
        return tuple(int(part) for part in re.findall(r"\d+", str(said))[:3])

    def needs_spec(self, version: str) -> None:
        """Go on only where the runtime says that it knows a version of the specification. Raises `NotExpressible`."""
        if self.spec < tuple(map(int, version.split("."))):
            known = ".".join(map(str, self.spec))
            raise NotExpressible(self.trial.subject.name, f"knows the specification as of {known}, not of {version}")

    def needs_this_kernel(self) -> None:
        """Go on only where containers run on the machine's own kernel, which can be asked. Raises `NotExpressible`."""
        if self._kernel is None:
            door, self.door = self.door, self._honest
            try:
                self._kernel = self.script("cat /proc/version").strip()
            finally:
                self.door = door
        if self._kernel != Path("/proc/version").read_text().strip():
            raise NotExpressible(self.trial.subject.name, "runs containers on a kernel of its own, not the machine's")

    def needs(self, held: object, lack: str) -> None:
        """Go on only where this machine has what a test needs. Raises `NotExpressible`."""
        if not held:
            raise NotExpressible(self.trial.subject.name, f"cannot show it here: {lack}")

    # Containers

    def name(self) -> str:
        return f"box-{next(self._serial)}-{os.getpid()}"

    def box(self, changes: Mapping[FieldPath, Any] | None = None, args: Sequence[str] | None = None) -> Box:
        """A new bundle with a root filesystem of its own; nothing is created yet."""
        name = self.name()
        path = self._bundles / name
        path.mkdir(mode=0o755)
        parent = self.trial.engine.cgroup_parent
        cgroup = f"{parent}/{name}"
        config = changed(base_config(name, cgroup if parent else ""), changes or {})
        if args is not None:
            config["process"]["args"] = list(args)
        box = Box(name, path, cgroup, config)
        plant(self._pristine, box.rootfs)
        self._boxes.append(box)
        return box

    def write(self, box: Box) -> None:
        """Write the configuration into the bundle."""
        self.door.write(box.path / "config.json", box.config)

    def try_create(self, box: Box, *flags: str, verb: str = "create", **how: Any) -> Completed:
        """``create`` from a bundle, whatever the status: stdout and stderr of the container are files of the bundle."""
        self.write(box)
        self._ids.add(box.id)
        words = ("--bundle", str(box.path), "--pid-file", str(box.pid_file), *flags, box.id)
        with box.stdout.open("ab") as out, box.stderr.open("ab") as err:
            done = self.door.call(Command(verb, words, stdout_fd=out.fileno(), stderr_fd=err.fileno(), **how))
        return Completed(done.argv, done.status, b"", done.stderr or (box.stderr.read_bytes() if done.status else b""))

    def create(self, box: Box, *flags: str, **how: Any) -> Box:
        """Create a container. Raises `Refused`."""
        done = self.try_create(box, *flags, **how)
        if done.status:
            raise Refused(f"create: {told(done) or 'no reason given'}", str(done.status))
        return box

    def start(self, box: Box) -> None:
        self.do("start", box.id)

    def launch(self, changes: Mapping[FieldPath, Any] | None = None, args: Sequence[str] = SLEEP) -> Box:
        """Create and start a container."""
        return self.sail(self.box(changes, args))

    def sail(self, box: Box) -> Box:
        """Create and start a bundle's container."""
        self.create(box)
        self.start(box)
        return box

    def run(self, box: Box) -> str:
        """Create and start a bundle's container; what it had printed by its end."""
        self.sail(box)
        self.await_end(box)
        return self.output(box)

    def script(self, script: str, changes: Mapping[FieldPath, Any] | None = None) -> str:
        """What a script for the container's shell prints."""
        return self.run(self.box(changes, ("/bin/sh", "-c", script)))

    def probe(self, *asked: str, changes: Mapping[FieldPath, Any] | None = None, box: Box | None = None) -> Facts:
        """What the probe says of a container with these changes, being its process."""
        box = box.apply(changes or {}) if box else self.box(changes)
        box.set("process.args", ["/bin/sh", PROBE, *asked])
        self.sail(box)
        return self.facts(box)

    def facts(self, box: Box) -> Facts:
        """What a container's probe has said by its end."""
        self.await_end(box)
        complaint = box.stderr.read_bytes()[-300:]
        assert box.stdout.stat().st_size, f"the container printed nothing; on stderr: {complaint!r}"
        return parse_facts(box.stdout.read_bytes())

    def output(self, box: Box) -> str:
        """What a container has printed so far."""
        return box.stdout.read_text(errors="replace")

    def await_end(self, box: Box) -> None:
        """Wait until the kernel says that a container's process has ended. Raises `WaitTimeout`."""
        with watch(box.pid_file) as ended:
            if not ended(self.patience_s):
                raise WaitTimeout(f"{self.trial.subject.name}: the process of {box.id} to end", self.patience_s)

    def await_output(self, box: Box, text: str) -> None:
        self.wait(lambda: text in self.output(box), f"{text!r} in the output of {box.id}")

    def kill(self, box: Box, *words: str) -> None:
        self.do("kill", box.id, *words)

    def end(self, box: Box) -> Box:
        """Have a container killed, and wait for its end and for the runtime to see it."""
        self.kill(box, "KILL")
        self.await_end(box)
        self.await_status(box, "stopped")
        return box

    def delete(self, box: Box, *flags: str) -> None:
        self.do("delete", *flags, box.id)

    def state(self, box: Box | str) -> dict[str, Any]:
        """The document of ``state``. Raises `Refused`, and `AssertionError` for what is no JSON object."""
        said = self.do("state", box if isinstance(box, str) else box.id).text
        try:
            found = json.loads(said)
        except ValueError:
            found = None
        assert isinstance(found, dict), f"state printed no JSON object but {said[:200]!r}"
        return found

    def status(self, box: Box | str) -> str:
        """The status of a container; "" where there is none."""
        done = self.attempt("state", box if isinstance(box, str) else box.id)
        return str(json.loads(done.stdout)["status"]) if done.status == 0 else ""

    def await_status(self, box: Box, status: str) -> None:
        self.wait(lambda: self.status(box) == status, f"{box.id} to be {status or 'gone'}")

    # What the kernel says

    def pid(self, box: Box) -> int:
        """The container's process, by the file that the runtime wrote."""
        return int(box.pid_file.read_text())

    def alive(self, box: Box) -> bool:
        """Whether the container's process is there and no zombie."""
        with contextlib.suppress(OSError, ValueError):
            return Path(f"/proc/{self.pid(box)}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        return False

    def proc(self, box: Box, name: str) -> str:
        """A file of ``/proc/PID`` of the container's process, whose program is the container's own by then."""
        return Path(f"/proc/{self.pid(box)}/{name}").read_bytes().decode(errors="surrogateescape")

    def folders(self, box: Box) -> list[Path]:
        """The folders of the container's cgroup that there are."""
        layout = self.trial.witness.layout
        tops = dict.fromkeys([*layout.controllers.values(), *([layout.unified] if layout.unified else [])])
        found = [top / os.path.relpath(box.cgroup, layout.roots.get(top, "/")) for top in tops]
        return [folder for folder in found if folder.is_dir()]

    def pids(self, box: Box) -> list[int]:
        """The processes in the container's cgroup and below it."""
        return sorted({pid for folder in self.folders(box) for pid in cgroups.read_pids(folder)})

    def control(self, box: Box, controller: str, old: str, new: str) -> str:
        """A control file of the cgroup in which the kernel has the container: `old` of v1, `new` of v2."""
        layout = self.trial.witness.layout
        cgroup = cgroups.cgroup_of(layout, controller, self.pid(box))
        folder = cgroups.path_of(layout, controller, cgroup)
        return (folder / (new if layout.is_v2(controller) else old)).read_text().strip()

    def needs_controller(self, name: str) -> None:
        """Go on only where the machine has a cgroup controller for the runtime. Raises `NotExpressible`."""
        layout = self.trial.witness.layout
        if layout.mode is cgroups.Mode.V2:
            usable = name in layout.controllers or name in CORE_OF_V2
        else:
            usable = name in layout.controllers and not layout.is_v2(name)
        self.needs(usable and self.trial.engine.cgroup_parent, f"there is no cgroup controller {name}")

    def untouched(self, box: Box) -> None:
        """Check that a refused ``create`` has left nothing: no container, no process, no cgroup."""
        assert self.status(box) == "", f"{box.id} was refused, and is {self.status(box)}"
        assert self.pids(box) == [], "a process was left of a container that was refused"
        assert self.folders(box) == [], f"a cgroup was left of a container that was refused: {self.folders(box)}"

    def cannot_create(self, box: Box) -> str:
        """Check that a bundle is refused, before anything is made of it; the reason given. Raises `AssertionError`."""
        done = self.try_create(box)
        assert done.status != 0, "create accepted it"
        assert told(done), f"create ended with {done.status}, and without a word"
        self.untouched(box)
        return told(done)

    # Clean up

    def tidy(self) -> None:
        """Remove what the test made; what is gone already is no error. The broken door, if any, is opened no more."""
        self.door = self._honest
        self.patience_s = PATIENCE_S
        ended = {box.id for box in self._boxes if box.pid_file.exists() and not self.alive(box)}
        for name in self._ids:
            # A container whose process is gone is no more than its state and its cgroup: no command is needed for them.
            kept = list(self.root.glob(f"*{name}*")) if name.startswith("box-") else []
            if kept == [self.root / name] and name in ended:
                shutil.rmtree(self.root / name, ignore_errors=True)
            elif kept:
                self._honest.call(Command("delete", ("--force", name)))
        for box in self._boxes:
            for folder in self.folders(box):
                self._clear(folder)
            shutil.rmtree(box.path, ignore_errors=True)
        self._boxes.clear()
        self._ids.clear()

    def _clear(self, folder: Path) -> None:
        """End what is in a cgroup, and remove it: a container that its runtime left, or a broken one did."""
        ladder.thaw(str(folder))
        for pid in cgroups.read_pids(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(WaitTimeout):
            wait_until(lambda: not cgroups.read_pids(folder), 5, f"the processes in {folder} to end")
        for below, _, _ in os.walk(folder, topdown=False):
            with contextlib.suppress(OSError):
                Path(below).rmdir()


def open_oci(trial: Trial) -> OciTrial:
    """The trial's runtime, command by command."""
    root = trial.arena.state / "client" / "states"
    return OciTrial(trial, OciCommandLine(trial.arena, trial.engine.handler, root), root)


def told(done: Completed) -> str:
    """What a command said on stderr."""
    return done.stderr.decode(errors="replace").strip()
