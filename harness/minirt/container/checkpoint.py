"""A container's processes into files and no further: CRIU's ``criu dump`` (https://criu.org/CLI/opt), which has to be installed.

What lies outside of the container is not dumped but named, for whoever restores it: mounts of folders and files of the
machine, namespaces that it shares, and open files that came from the machine.
"""

from __future__ import annotations

import os
import shutil

from harness.minirt.container.files import read_file
from harness.minirt.errors import TimedOut, Unsupported, WrongState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.minirt.container.cgroup import Cgroup

LOG = "dump.log"
OWN_ROOT_NAMES = {"net": "extRootNetNS", "pid": "extRootPidNS"}
"""namespaces that criu takes from outside; it can do that for these two only"""


def find_criu() -> str:
    """The program. Raises `Unsupported` where it is not installed."""
    program = shutil.which("criu", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        raise Unsupported("checkpoints are made by criu, which is not installed on this machine")
    return program


def dump(place: Cgroup, pid: int, spec: dict[str, Any], images: str, work: str, timeout_s: float) -> None:
    """Write the processes below `pid`, which are frozen in `place` and stay so, into the folder `images`.

    `spec`: its config.json. The log and figures go to `work`. Raises `Unsupported`, `WrongState` with criu's own words,
    and `TimedOut`.
    """
    import subprocess

    program = find_criu()
    freezer = place.folders.get("freezer") or place.folders.get("")
    words = [program, "dump", "--tree", str(pid), "--images-dir", images, "--work-dir", work, "--log-file", LOG]
    words += ["--leave-running", "--manage-cgroups=ignore", "--file-locks", "--link-remap", "--tcp-established", "-v2"]
    words += ["--external", "mnt[]:ms"]
    words += ["--freeze-cgroup", freezer] if freezer else []
    words += ["--shell-job"] if spec["process"].get("terminal") else []
    for name in (*outer_namespaces(pid, spec), *outer_files(place.pids())):
        words += ["--external", name]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise TimedOut(f"criu did not end within {timeout_s:g} s") from None
    if done.returncode:
        raise WrongState(f"criu cannot dump the container: {complaint(f'{work}/{LOG}', done.stderr)}")


def outer_namespaces(pid: int, spec: dict[str, Any]) -> list[str]:
    """Namespaces that the container joined: they are its pod's."""
    found = []
    for row in spec["linux"]["namespaces"]:
        kind = {"network": "net"}.get(row["type"], row["type"])
        if row.get("path") and kind in OWN_ROOT_NAMES:
            found.append(f"{kind}[{os.stat(f'/proc/{pid}/ns/{kind}').st_ino}]:{OWN_ROOT_NAMES[kind]}")
    return found


def outer_files(pids: list[int]) -> list[str]:
    """Open files that are on none of the container's mounts: /dev/null of the machine as its stdin, for one."""
    found: dict[str, None] = {}
    for pid in pids:
        try:
            mounts = {line.split(" ", 1)[0] for line in read_file(f"/proc/{pid}/mountinfo").splitlines()}
            for fd in os.listdir(f"/proc/{pid}/fd"):
                facts = dict(
                    line.split(":\t", 1) for line in read_file(f"/proc/{pid}/fdinfo/{fd}").splitlines() if ":\t" in line
                )
                if os.readlink(f"/proc/{pid}/fd/{fd}").startswith("/") and facts["mnt_id"].strip() not in mounts:
                    inode = os.stat(f"/proc/{pid}/fd/{fd}").st_ino
                    found[f"file[{int(facts['mnt_id']):x}:{inode:x}]"] = None
        except OSError:  # it has just ended: criu will not find it either
            continue
    return list(found)


def complaint(log: str, stderr: bytes) -> str:
    """The first error in criu's log; the later ones follow from it."""
    try:
        lines = read_file(log).splitlines()
    except OSError:
        lines = []
    lines = lines or stderr.decode(errors="replace").splitlines()
    # Of what criu can do without it says so too.
    harmless = ("rlimit:", "tun:")
    errors = [
        line.partition("Error ")[2] for line in lines if "Error " in line and not any(word in line for word in harmless)
    ]
    return errors[0].partition("): ")[2] or errors[0] if errors else "it does not say why"
