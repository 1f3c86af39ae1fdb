"""A bundle and a minirt command line for tests: everything made is below one folder and one cgroup, and goes with them."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.clock import wait_until
from harness.linux.mounts import mounts_below, read_mounts
from harness.minirt.container import cgroup as cgroups
from harness.minirt.oci.about import default_config

_APPLETS = (
    "sh",
    "cat",
    "echo",
    "id",
    "ls",
    "sleep",
    "true",
    "grep",
    "mkdir",
    "touch",
    "stat",
    "tty",
    "stty",
    "pwd",
    "kill",
    "readlink",
)
CGROUP = f"/seatrial-test-minirt-{os.getpid()}"


class Bundle:
    """A folder with a root filesystem of busybox; `config` is what the next `write` puts into config.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.states = folder / "states"
        self.program = [sys.executable, "-m", "harness.minirt"]
        """another runtime's, to have it do the same"""
        self.rootfs = folder / "rootfs"
        for name in ("bin", "etc", "tmp"):
            (self.rootfs / name).mkdir(parents=True)
        busybox = shutil.which("busybox")
        assert busybox is not None
        shutil.copy(busybox, self.rootfs / "bin/busybox")
        self.have(*_APPLETS)
        (self.rootfs / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
        self.config: dict[str, Any] = copy.deepcopy(default_config())
        self.config["process"]["terminal"] = False
        self.config["linux"]["cgroupsPath"] = f"{CGROUP}/box"

    def have(self, *applets: str) -> None:
        """Have these programs of busybox in /bin, beside those that are there."""
        for path in [self.rootfs / "bin" / applet for applet in applets]:
            if not path.exists():
                path.hardlink_to(self.rootfs / "bin/busybox")

    def sh(self, script: str) -> Bundle:
        """Have the container run a script."""
        self.config["process"]["args"] = ["/bin/sh", "-c", script]
        return self

    def write(self) -> None:
        (self.folder / "config.json").write_text(json.dumps(self.config))

    def minirt(self, *words: str, **named: Any) -> subprocess.CompletedProcess[str]:
        """Run one command line to its end, below a states folder of the bundle's own."""
        self.write()
        argv = [*self.program, "--root", str(self.states), *words]
        named = {"stdin": subprocess.DEVNULL, "capture_output": True} | named
        return subprocess.run(argv, text=True, timeout=60, cwd=self.folder, **named)

    def runtime(self, name: str, *words: str, **named: Any) -> subprocess.CompletedProcess[str]:
        """The same command line of minirt or of another OCI runtime, below a states folder of its own."""
        if name == "minirt":
            return self.minirt(*words, **named)
        self.write()
        argv = [name, "--root", str(self.folder / f"states-{name}"), *words]
        named = {"stdin": subprocess.DEVNULL, "capture_output": True} | named
        return subprocess.run(argv, text=True, timeout=60, cwd=self.folder, **named)

    def ok(self, *words: str, **named: Any) -> str:
        """The output of a command line that has to succeed."""
        done = self.minirt(*words, **named)
        assert done.returncode == 0, done.stderr
        return done.stdout or ""

    def run(self, script: str) -> str:
        """What a script prints in a container of its own."""
        return self.sh(script).ok("run", "box")

    def state(self, id: str = "box") -> dict[str, Any]:
        return json.loads(self.ok("state", id))

    def create(self, id: str = "box") -> None:
        """Create with stdio that nobody waits for."""
        with (self.folder / "out").open("w") as out:
            self.ok("create", id, stdout=out, stderr=out, capture_output=False)

    def output(self) -> str:
        return (self.folder / "out").read_text()

    def await_output(self, text: str) -> None:
        wait_until(lambda: text in self.output(), 20, f"{text!r} in the container's output")

    def await_status(self, status: str, id: str = "box") -> None:
        wait_until(lambda: self.state(id)["status"] == status, 20, f"container {id} to be {status}")

    def leftovers(self) -> list[str]:
        """What is still there of containers: mounts, cgroups with the bundle's name, states."""
        found = [mount.target for mount in mounts_below(read_mounts(), str(self.folder))]
        layout = cgroups.read_layout()
        folders = {hierarchy.folder for hierarchy in layout.v1.values()}
        folders |= {layout.unified.folder} if layout.unified else set()
        found += [f"{folder}{CGROUP}/box" for folder in folders if Path(f"{folder}{CGROUP}/box").exists()]
        return found + [str(path) for path in self.states.glob("*")]


@contextlib.contextmanager
def open_bundle(folder: Path) -> Iterator[Bundle]:
    """A bundle; at the end every container is deleted by force and the cgroup above them removed."""
    bundle = Bundle(folder)
    try:
        yield bundle
    finally:
        for id in bundle.ok("list", "--quiet").split() if bundle.states.exists() else ():
            bundle.ok("delete", "--force", id)
        for states in bundle.folder.glob("states-*"):
            for id in [path.name for path in states.iterdir()]:
                bundle.runtime(states.name.removeprefix("states-"), "delete", "--force", id)
        # Other runtimes use more hierarchies than minirt does.
        for mount in read_mounts():
            # A test beside us may have mounts below its own folder.
            if mount.fstype in ("cgroup", "cgroup2") and not Path(mount.target).is_relative_to(folder.parents[1]):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{mount.target}{CGROUP}").rmdir()
