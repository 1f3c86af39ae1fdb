"""Attacks on minirt's own executable, the interpreter, by way of ``/proc/N/exe`` (CVE-2019-5736).

The interpreter is a copy in the test's folder: whatever happens, the machine's own one is not touched. Each attack tries to
write into what it gets hold of, and the copy has to be byte for byte what it was.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from minirt_bundle import Bundle, open_bundle

from harness.clock import wait_until
from harness.linux.capabilities import NAMES

_MARK = b"overwritten"
_WRITE = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* As long as somebody executes the file it cannot be written to; so try for three seconds. */
static void overwrite(int held)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", held);
    for (int i = 0; i < 300; i++, usleep(10000)) {
        int fd = open(path, O_WRONLY);
        if (fd >= 0) {
            (void)!write(fd, "overwritten", 11);
            _exit(0);
        }
    }
}

static int tell(const char *name, int held)
{
    char path[64], what[4096];
    snprintf(path, sizeof path, "/proc/self/fd/%d", held);
    long size = readlink(path, what, sizeof what - 2);
    int out = open(name, O_CREAT | O_WRONLY | O_APPEND, 0666);
    what[size > 0 ? size : 0] = '\n';
    what[size > 0 ? size + 1 : 1] = 0;
    (void)!write(out, what, strlen(what));
    close(out);
    return strstr(what, "python") != 0;
}
"""

_LIBRARY = (
    _WRITE
    + r"""
/* Runs before the program, in whatever process loads it: holds on to that program, and goes on as another one, that writes. */
__attribute__((constructor)) static void attack(void)
{
    char number[16];
    int held = open("/proc/self/exe", O_PATH);
    tell("/tmp/held", held);
    snprintf(number, sizeof number, "%d", held);
    unsetenv("LD_PRELOAD");
    execl("/writer", "writer", number, (char *)0);
    _exit(1);
}
"""
)

_WRITER = _WRITE + "int main(int count, char **words) { (void)count; (void)tell; overwrite(atoi(words[1])); return 1; }"

_WATCHER = (
    _WRITE
    + r"""
/* Looks at every process that comes up, and holds on to the program of the first that is an interpreter. */
int main(void)
{
    close(open("/tmp/ready", O_CREAT | O_WRONLY, 0666));
    for (;;) {
        DIR *all = opendir("/proc");
        for (struct dirent *one = readdir(all); one; one = readdir(all)) {
            char path[300];
            if (atoi(one->d_name) < 2)
                continue;
            snprintf(path, sizeof path, "/proc/%s/exe", one->d_name);
            int held = open(path, O_PATH);
            if (held < 0)
                continue;
            if (tell("/tmp/held", held))
                overwrite(held);
            close(held);
        }
        closedir(all);
    }
}
"""
)


class Copy:
    """minirt run by a copy of the interpreter."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self.bundle = bundle
        self.program = folder / "python"
        shutil.copy(os.path.realpath(sys.executable), self.program)
        self._bytes = self.program.read_bytes()
        self._environ = os.environ | {
            "PYTHONHOME": sys.base_prefix,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }

    def argv(self, *words: str) -> list[str]:
        self.bundle.write()
        return [str(self.program), "-m", "harness.minirt", "--root", str(self.bundle.states), *words]

    def minirt(self, *words: str, **named: Any) -> subprocess.CompletedProcess[str]:
        named = {
            "stdin": subprocess.DEVNULL,
            "capture_output": True,
            "text": True,
            "timeout": 60,
            "check": False,
        } | named
        return subprocess.run(self.argv(*words), cwd=self.bundle.folder, env=self._environ, **named)

    @property
    def is_whole(self) -> bool:
        return self.program.read_bytes() == self._bytes

    def await_attack(self) -> None:
        """Give whoever tries to write the time to do so: more than they take."""
        deadline = time.monotonic() + 5
        wait_until(lambda: not self.is_whole or time.monotonic() > deadline, 20, "the attack to be over")


def _compile(text: str, to: Path, *words: str) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = to.with_suffix(".c")
    source.write_text(text)
    subprocess.run([compiler, *words, "-o", str(to), str(source)], check=True, timeout=60)


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    with open_bundle(tmp_path) as bundle:
        bundle.config["root"]["readonly"] = False
        (bundle.rootfs / "tmp").chmod(0o777)
        yield bundle


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Copy:
    return Copy(bundle, tmp_path)


@pytest.fixture
def hostile(bundle: Bundle) -> Bundle:
    """A root filesystem in which the interpreter, executed there, loads the attacker's library before anything else."""
    _compile(_LIBRARY, bundle.rootfs / "attack.so", "-shared", "-fPIC")
    _compile(_WRITER, bundle.rootfs / "writer", "-static")
    # Its own libraries, so that it gets as far as to load that one.
    program = os.path.realpath(sys.executable)
    listing = subprocess.run(["ldd", program], capture_output=True, text=True, timeout=60, check=True)
    for word in listing.stdout.split():
        if word.startswith("/"):
            place = Path(f"{bundle.rootfs}{word}")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, place)
    (bundle.rootfs / "etc/ld.so.preload").write_text("/attack.so\n")
    return bundle


@pytest.fixture
def watched(bundle: Bundle) -> Bundle:
    """A root filesystem with a program that waits for interpreters."""
    _compile(_WATCHER, bundle.rootfs / "watcher", "-static")
    bundle.config["process"]["args"] = ["/watcher"]
    return bundle


def _held(bundle: Bundle) -> str:
    path = bundle.rootfs / "tmp/held"
    return path.read_text() if path.exists() else ""


def _give_all(bundle: Bundle, *but: str) -> None:
    own = [name for name in NAMES if name not in but]
    bundle.config["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), own)


def test_the_copy_can_be_overwritten(copy: Copy) -> None:
    """That there is something to attack: as root, and once nobody executes it, the file is written to as any other."""
    with copy.program.open("r+b") as file:
        file.write(_MARK)
    assert not copy.is_whole


@pytest.mark.parametrize("way", ["entrypoint", "link", "script"])
def test_a_container_that_executes_its_runtime(hostile: Bundle, copy: Copy, way: str) -> None:
    """The entrypoint is ``/proc/self/exe``: at that moment it is minirt's interpreter that is executed again, inside."""
    program = hostile.rootfs / "entry"
    if way == "link":
        program.symlink_to("/proc/self/exe")
    elif way == "script":
        program.write_text("#!/proc/self/exe\n")
        program.chmod(0o755)
    hostile.config["process"]["args"] = ["/proc/self/exe" if way == "entrypoint" else "/entry"]
    _give_all(hostile)
    for words in (("create", "box"), ("start", "box")):
        copy.minirt(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, capture_output=False)
    copy.await_attack()
    assert copy.is_whole, f"held: {_held(hostile)}"


@pytest.mark.parametrize("way", ["link", "script"])
def test_exec_into_a_container_that_waits_for_it(hostile: Bundle, copy: Copy, way: str) -> None:
    """``/bin/target`` is what somebody executes now and then; it leads to ``/proc/self/exe``."""
    program = hostile.rootfs / "bin/target"
    if way == "link":
        program.symlink_to("/proc/self/exe")
    else:
        program.write_text("#!/proc/self/exe\n")
        program.chmod(0o755)
    _give_all(hostile)
    hostile.sh("while :; do sleep 0.05; done").create()
    hostile.ok("start", "box")
    copy.minirt(
        "exec",
        "--detach",
        "box",
        "/bin/target",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        capture_output=False,
    )
    copy.await_attack()
    assert copy.is_whole, f"held: {_held(hostile)}"


@pytest.mark.parametrize("ptrace", [False, True], ids=["without-ptrace", "with-ptrace"])
def test_a_watcher_in_the_container(watched: Bundle, copy: Copy, ptrace: bool) -> None:
    """A process in the container waits for those that exec brings, and holds on to ``/proc/N/exe`` of each."""
    if ptrace:
        _give_all(watched)
    watched.create()
    watched.ok("start", "box")
    wait_until((watched.rootfs / "tmp/ready").exists, 20, "the watcher")
    for _ in range(8):
        if not copy.is_whole:
            break
        copy.minirt("exec", "box", "/bin/true")
    copy.await_attack()
    assert copy.is_whole, f"held: {_held(watched)}"
    if not ptrace:
        # It sees nothing of minirt's child: not its program, and so neither its memory nor its descriptors.
        assert "python" not in _held(watched)


def test_ptrace_is_what_it_takes_to_be_dumpable() -> None:
    """What the protection rests on: prctl(2), PR_GET_DUMPABLE of a process that has given it up."""
    code = "from harness.linux import syscalls; syscalls.prctl(4, 0); print(syscalls.prctl(3)); import os; print(os.getpid())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split()[0] == "0"
    assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 1
