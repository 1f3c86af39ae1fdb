"""A bundle of a normal user's, and a minirt command line that such a user calls.

The interpreter and the sources may lie where no other user gets to: the command finds them bound below the user's own folder,
in a mount namespace of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minirt_bundle import Bundle

import harness

UID, GID = 54321, 54322
SUBIDS = 500_000
"""the first of the 1000 ids that are granted to the user in /etc/subuid and /etc/subgid"""

_BECOME = """
import os, sys
from harness.linux import syscalls
uid, gid, count = map(int, sys.argv[1:4])
binds, words = sys.argv[4 : 4 + 2 * count], sys.argv[4 + 2 * count :]
syscalls.unshare(syscalls.CLONE_NEWNS)
syscalls.mount(None, "/", None, syscalls.MS_PRIVATE | syscalls.MS_REC)
for source, place in zip(binds[::2], binds[1::2]):
    syscalls.mount(source, place, None, syscalls.MS_BIND | syscalls.MS_REC)
os.setgroups([])
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
os.execv(words[0], words)
"""


class UserBundle(Bundle):
    """What `Bundle` is, for a user: `config` has a user namespace that maps the user alone, and no limits."""

    def __init__(self, home: Path) -> None:
        (home / "box").mkdir()
        super().__init__(home / "box")
        self.have("readlink", "hostname", "wc", "head", "cut")
        self.home = home
        self.run_folder = home / "run"
        self.states = self.run_folder / "minirt"
        for name in ("run", "python", "repo"):
            (home / name).mkdir()
        for name, text in {
            "passwd": f"root:x:0:0::/:/bin/sh\nsailor:x:{UID}:{GID}::/:/bin/sh\n",
            "subuid": f"sailor:{SUBIDS}:1000\n",
            "subgid": f"sailor:{SUBIDS}:1000\n",
        }.items():
            (home / name).write_text(text)
        linux = self.config["linux"]
        linux["namespaces"] = [{"type": kind} for kind in ("user", "pid", "ipc", "uts", "mount", "cgroup")]
        linux["uidMappings"] = [{"containerID": 0, "hostID": UID, "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": GID, "size": 1}]
        del linux["cgroupsPath"], linux["resources"]
        for mount in self.config["mounts"]:
            mount["options"] = [word for word in mount["options"] if word != "gid=5"]
        self.config["root"]["readonly"] = False
        for path in (home, *home.rglob("*")):
            os.chown(path, UID, GID, follow_symlinks=False)

    def write(self) -> None:
        super().write()
        os.chown(self.folder / "config.json", UID, GID)

    def map_more(self) -> None:
        """Map the granted ids too, from 1 on."""
        for name in ("uidMappings", "gidMappings"):
            self.config["linux"][name].append({"containerID": 1, "hostID": SUBIDS, "size": 1000})

    def command(self, *words: str) -> list[str]:
        """A minirt command line, for `as_user`."""
        program = os.path.relpath(os.path.realpath(sys.executable), os.path.realpath(sys.base_prefix))
        return [str(self.home / "python" / program), "-m", "harness.minirt", *words]

    def as_user(
        self, words: list[str], environ: Mapping[str, str] | None = None, **named: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program, by its path, as the user. `environ`: changes to the environment; an empty value takes a variable out."""
        self.write()
        binds = {
            os.path.realpath(sys.base_prefix): self.home / "python",
            str(Path(harness.__file__).parents[1]): self.home / "repo",
            **{str(self.home / name): Path("/etc") / name for name in ("passwd", "subuid", "subgid")},
        }
        for place in binds.values():
            if not place.exists():  # not every machine has the files of shadow's
                place.touch()
        flat = [str(item) for pair in binds.items() for item in pair]
        argv = [sys.executable, "-c", _BECOME, str(UID), str(GID), str(len(binds)), *flat, *words]
        wanted = {
            "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
            "PYTHONHOME": str(self.home / "python"),
            "PYTHONPATH": str(self.home / "repo"),
            "XDG_RUNTIME_DIR": str(self.run_folder),
            **(environ or {}),
        }
        # The interpreter that becomes the user is still ours.
        argv = [argv[0], "-c", _TAKE, str(len(wanted)), *[f"{name}={text}" for name, text in wanted.items()], *argv[2:]]
        named = {"stdin": subprocess.DEVNULL, "capture_output": True, "check": False} | named
        return subprocess.run(argv, text=True, timeout=60, cwd=self.folder, **named)

    def minirt(self, *words: str, **named: Any) -> subprocess.CompletedProcess[str]:
        return self.as_user(self.command(*words), **named)


_TAKE = """
import os, sys
count = int(sys.argv[1])
code, rest = sys.argv[2 + count], sys.argv[3 + count :]
wanted = dict(entry.split("=", 1) for entry in sys.argv[2 : 2 + count])
sys.argv = ["-c", *rest]
from harness.linux import syscalls
os.environ.clear()
os.environ.update({name: text for name, text in wanted.items() if text})
exec(code)
"""


@contextlib.contextmanager
def open_user_bundle() -> Iterator[UserBundle]:
    """A user's bundle, in a folder that others can get to; at the end every container is deleted by force."""
    home = Path(tempfile.mkdtemp(prefix="seatrial-user-"))
    home.chmod(0o755)
    try:
        bundle = UserBundle(home)
        try:
            yield bundle
        finally:
            for id in bundle.ok("list", "--quiet").split():
                bundle.ok("delete", "--force", id)
    finally:
        shutil.rmtree(home)
