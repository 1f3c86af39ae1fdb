"""What is shipped to a machine: the harness and the libraries it needs there, as a virtual environment in two archives.

Nothing is installed there with pip and nothing fetched: the machine may have neither. Libraries come from the package index
that this computer uses, as wheels for the machine's own Python, once; then they are in the cache.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import re
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness import __version__, paths
from harness.command import HostRunner
from harness.errors import CommandError, MachineError
from harness.fleet.box import cache
from harness.fleet.lines import Say

DISTRIBUTION = "seatrial"
STAYS_HERE = ("pandas", "scipy")
"""Only reports need them, and those are made here."""
OLDEST = (3, 11)
PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux_2_34")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Of a command on a machine: what one that comes by ssh is given may lack the system folders."""
QUESTION = (
    "import json, os, platform, sys; "
    "print(json.dumps([*sys.version_info[:2], platform.machine(), os.path.realpath(sys.executable)]))"
)


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The Python of a machine."""

    major: int
    minor: int
    machine: str
    """architecture, as the kernel calls it"""
    program: str

    @property
    def version(self) -> str:
        return f"{self.major}.{self.minor}"

    @property
    def library(self) -> str:
        """Where modules are, in a virtual environment."""
        return f"lib/python{self.version}/site-packages"


def parse_interpreter(answer: str, name: str) -> Interpreter:
    """What `QUESTION` was answered with on machine `name`. Raises `MachineError` where that will not do."""
    try:
        found = Interpreter(*json.loads(answer))
    except (TypeError, ValueError):
        raise MachineError(f"{name} has no Python that answers", "install python3 there") from None
    if (found.major, found.minor) < OLDEST:
        raise MachineError(
            f"{name} has Python {found.version}, and Seatrial needs {'.'.join(map(str, OLDEST))} or newer"
        )
    return found


def requirements(interpreter: Interpreter) -> list[str]:
    """What the harness needs on a machine with that Python, as requirement specifiers (PEP 508)."""
    from packaging.requirements import Requirement

    there = {
        "python_version": interpreter.version,
        "python_full_version": f"{interpreter.version}.0",
        "platform_machine": interpreter.machine,
        "extra": "",
    }
    found = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or ()]
    return sorted(
        f"{need.name}{need.specifier}"
        for need in found
        if need.name not in STAYS_HERE and (need.marker is None or need.marker.evaluate(there))
    )


def pack_libraries(interpreter: Interpreter, say: Say) -> Path:
    """An archive of all libraries, for `Interpreter.library`; from the cache, or fetched. Raises `MachineError`."""
    needs = requirements(interpreter)
    key = hashlib.sha256(json.dumps([needs, interpreter.version, interpreter.machine]).encode()).hexdigest()[:12]
    path = cache() / "cargo" / f"python{interpreter.version}-{interpreter.machine}-{key}.tar"
    if path.exists():
        return path
    say(f"fetching libraries for Python {interpreter.version}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=path.parent) as folder:
        tag = f"cp{interpreter.major}{interpreter.minor}"
        argv = (
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"),
            *("--only-binary=:all:", "--implementation", "cp", "--python-version", interpreter.version),
            *(word for abi in (tag, "abi3", "none") for word in ("--abi", abi)),
            *(word for name in PLATFORMS for word in ("--platform", f"{name}_{interpreter.machine}")),
            *("--target", f"{folder}/site", *needs),
        )
        try:
            HostRunner().run(argv, timeout_s=600).check()
        except CommandError as error:
            raise MachineError(
                f"libraries for Python {interpreter.version} cannot be fetched: {_last(error.stderr)}",
                "is there a network?",
            ) from None
        draft = Path(folder, "draft.tar")
        with tarfile.open(draft, "w") as archive:
            archive.add(f"{folder}/site", ".", filter=_owned_by_root)
        draft.replace(path)
    return path


def pack_harness(interpreter: Interpreter, place: str) -> bytes:
    """A tar archive: the harness as a virtual environment, to be unpacked at the path `place` of the machine."""
    library = f"{interpreter.library}/harness"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:

        def put(name: str, text: str, mode: int = 0o644) -> None:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), mode
            archive.addfile(entry, io.BytesIO(text.encode()))

        archive.add(paths.PACKAGE, library, filter=_source)
        for name, find in FOLDERS.items():
            if paths.checkout():
                archive.add(find(), f"{library}/{name}", filter=_source)
        put("pyvenv.cfg", f"home = {Path(interpreter.program).parent}\nversion = {interpreter.version}\n")
        link = tarfile.TarInfo("bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, interpreter.program
        archive.addfile(link)
        put("bin/seatrial", f"#!{place}/bin/python3\nfrom harness.cli import main\n\nmain()\n", 0o755)
        put("bin/minirt", (paths.PACKAGE / "minirt" / "minirt").read_text(), 0o755)
        put(
            f"{interpreter.library}/{DISTRIBUTION}-{__version__}.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {__version__}\n",
        )
    return packed.getvalue()


FOLDERS: dict[str, Callable[[], Path]] = {"suites": paths.suites, "fixtures": paths.fixtures, "vagrant": paths.vagrant}
"""What a wheel has inside the package, and a checkout beside it."""


def _source(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if re.search(r"(^|/)(__pycache__|selftest|\.[^/]+)(/|$)", entry.name):
        return None
    return _owned_by_root(entry)


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("WARNING")]
    return lines[-1] if lines else "pip gave no reason"
