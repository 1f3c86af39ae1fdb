"""Attacks on minirt by way of what a process inherits: descriptors, the working directory, the names of modules."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from minirt_bundle import Bundle, open_bundle

import harness

_OUR_DESCRIPTORS = range(3, 14)
"""those that minirt has itself while it makes a container are among them"""


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    (tmp_path / "secret").write_text("the machine's secret")
    with open_bundle(tmp_path) as bundle:
        bundle.config["root"]["readonly"] = False
        yield bundle


@pytest.fixture
def running(bundle: Bundle) -> Bundle:
    bundle.sh("while :; do sleep 0.05; done").create()
    bundle.ok("start", "box")
    return bundle


def _climb(through: str) -> str:
    """A script that looks for the secret from a working directory upwards, and tells where it is."""
    return f"{through} pwd; for up in . .. ../.. ../../..; do cat $up/secret 2>/dev/null; done; exit 0"


@pytest.mark.parametrize("link", [False, True], ids=["cwd", "link"])
def test_no_descriptor_of_ours_is_a_working_directory(bundle: Bundle, link: bool) -> None:
    """CVE-2024-21626: ``process.cwd`` of ``/proc/self/fd/N``, by itself or behind a symbolic link of the image."""
    for number in _OUR_DESCRIPTORS:
        cwd = f"/proc/self/fd/{number}"
        if link:
            (bundle.rootfs / f"work{number}").symlink_to(cwd)
            cwd = f"/work{number}"
        bundle.config["process"]["cwd"] = cwd
        done = bundle.sh(_climb("")).minirt("run", "box")
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert bundle.leftovers() == []


INSIDE = pytest.mark.parametrize("inside", [False, True], ids=["above", "in-the-rootfs"])
"""A folder in the rootfs lies below the container's root by its inode, but not by its mount: ``..`` leads out of it."""


@INSIDE
def test_a_descriptor_that_was_handed_on_is_no_working_directory(bundle: Bundle, inside: bool) -> None:
    fd = os.open(bundle.rootfs / "tmp" if inside else bundle.folder, os.O_PATH | os.O_DIRECTORY)
    handed_on = range(3, fd + 1)  # the lowest free number was taken, so all below are open
    words = ("run", "--preserve-fds", str(len(handed_on)), "box")
    try:
        # The descriptor itself is handed on, as it was asked for: so it does lead out.
        shown = bundle.sh(_climb(f"cd /proc/self/fd/{fd};")).ok(*words, pass_fds=handed_on)
        assert "the machine's secret" in shown
        bundle.config["process"]["cwd"] = f"/proc/self/fd/{fd}"
        done = bundle.sh(_climb("")).minirt(*words, pass_fds=handed_on)
    finally:
        os.close(fd)
    assert (done.returncode, done.stdout) == (1, "")


@INSIDE
def test_exec_has_no_working_directory_outside(running: Bundle, inside: bool) -> None:
    fd = os.open(running.rootfs / "tmp" if inside else running.folder, os.O_PATH | os.O_DIRECTORY)
    (running.rootfs / "work").symlink_to(f"/proc/self/fd/{fd}")
    process = running.config["process"] | {"cwd": "/work", "args": ["/bin/sh", "-c", _climb("")]}
    (running.folder / "process.json").write_text(json.dumps(process))
    handed_on = range(3, fd + 1)
    preserve = ("--preserve-fds", str(len(handed_on)))
    attacks = [
        ("exec", *preserve, "--cwd", f"/proc/self/fd/{fd}", "box", "/bin/sh", "-c", _climb("")),
        ("exec", *preserve, "--cwd", "/work", "box", "/bin/sh", "-c", _climb("")),
        ("exec", *preserve, "--process", str(running.folder / "process.json"), "box"),
    ]
    attacks += [
        ("exec", "--cwd", f"/proc/self/fd/{number}", "box", "/bin/sh", "-c", _climb("")) for number in range(3, 9)
    ]
    try:
        for words in attacks:
            done = running.minirt(*words, pass_fds=handed_on if "--preserve-fds" in words else ())
            assert done.returncode != 0, words
            assert done.stdout == "", words
            if "--preserve-fds" in words:
                assert "outside of the container's root" in done.stderr
    finally:
        os.close(fd)


def test_no_descriptor_of_ours_is_the_way_to_a_program(bundle: Bundle) -> None:
    """A program's path through a descriptor of the machine's would be opened before close-on-exec takes effect."""
    program = bundle.folder / "echo"
    shutil.copy(bundle.rootfs / "bin/busybox", program)
    # A process of the machine's that has no more rights than the container: its /proc/N/root is open to it.
    powerless = subprocess.Popen(["setpriv", "--bounding-set=-all", "--inh-caps=-all", "sleep", "100"])
    try:
        for number in _OUR_DESCRIPTORS:
            for way in (f"{powerless.pid}/root{program}", f"..{program}"):
                bundle.config["process"]["args"] = [f"/proc/self/fd/{number}/{way}", "escaped"]
                done = bundle.minirt("run", "box")
                assert done.returncode != 0
                assert "escaped\n" not in done.stdout
    finally:
        powerless.kill()
        powerless.wait()
    assert bundle.leftovers() == []


def _open_descriptors(listing: str) -> set[int]:
    return {int(word) for word in listing.split()}


def test_nothing_leaks_into_the_container_nor_into_a_hook(bundle: Bundle) -> None:
    """What a careless caller has left open reaches neither the container's program nor any of its hooks."""
    listing = 'cd /proc/self/fd; for n in *; do [ -L "$n" ] && echo $n; done; true'
    shown = bundle.folder / "shown"
    names = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    (bundle.rootfs / "tmp/shown").mkdir()
    shown.mkdir()
    bundle.config["hooks"] = {}
    for name in names:
        folder = "/tmp/shown" if name == "startContainer" else str(shown)
        command = f"({listing}) >{folder}/{name} 2>/dev/null </dev/null"
        bundle.config["hooks"][name] = [{"path": "/bin/sh", "args": ["sh", "-c", command], "env": ["PATH=/bin"]}]
    secret = [os.open(bundle.folder / "secret", os.O_RDONLY) for _ in range(4)]
    folder = os.open(bundle.folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        bundle.config["process"]["args"] = ["/bin/sh", "-c", f"({listing}) </dev/null"]
        inside = bundle.ok("run", "box", pass_fds=(*secret, folder))
    finally:
        for fd in (*secret, folder):
            os.close(fd)
    ours = {*secret, folder}
    assert _open_descriptors(inside) & ours == set()
    for name in names:
        where = bundle.rootfs / "tmp/shown" if name == "startContainer" else shown
        found = _open_descriptors((where / name).read_text())
        assert {0, 1} <= found, name
        assert found & ours == set(), name


def test_descriptors_to_preserve_have_to_be_open(bundle: Bundle) -> None:
    done = bundle.sh("true").minirt("run", "--preserve-fds", "900", "box")
    assert done.returncode == 1
    assert "unable to stat preserved-fd 0 (of 900)" in done.stderr
    assert bundle.leftovers() == []


@pytest.mark.parametrize("closed", [(0,), (0, 1), (0, 1, 2)])
def test_closed_standard_descriptors_are_not_taken_by_ours(bundle: Bundle, closed: tuple[int, ...]) -> None:
    bundle.sh(
        "cd /proc/$$/fd; a=$(/bin/readlink 0) b=$(/bin/readlink 1) c=$(/bin/readlink 2); echo $a $b $c >/tmp/shown"
    ).write()
    bundle.have("readlink")
    argv = [sys.executable, "-m", "harness.minirt", "--root", str(bundle.states), "run", "box"]
    closing = "import os, sys; [os.close(int(n)) for n in sys.argv[1].split(',')]; os.execv(sys.argv[2], sys.argv[2:])"
    words = [sys.executable, "-c", closing, ",".join(map(str, closed)), *argv]
    done = subprocess.run(words, cwd=bundle.folder, timeout=60, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = (bundle.rootfs / "tmp/shown").read_text().split()
    assert [shown[number] for number in closed] == ["/dev/null"] * len(closed)


def _lay_module_trap(bundle: Bundle) -> None:
    """Put a module that leaves a trace wherever the interpreter would look for one by the machine's names."""
    trap = "open('/sprung', 'a').write(__file__ + '\\n')\n"
    library = sysconfig.get_path("stdlib")
    for name in sys.stdlib_module_names:
        if name not in sys.builtin_module_names:
            path = Path(f"{bundle.rootfs}{library}/{name}.py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(trap)
    package = Path(harness.__file__).parent
    for module in (package / "minirt").rglob("*.py"):
        path = Path(f"{bundle.rootfs}{module}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(trap)


def test_the_interpreter_takes_no_module_from_the_container(bundle: Bundle) -> None:
    """For minirt is Python: after the change of the root, the names of its own modules are names in the container's root."""
    _lay_module_trap(bundle)
    sprung = bundle.rootfs / "sprung"
    naive = f"import os; os.chroot({str(bundle.rootfs)!r}); os.chdir('/'); import graphlib"
    subprocess.run([sys.executable, "-c", naive], timeout=60, check=True)
    assert sprung.exists()
    sprung.unlink()
    sealed = naive.replace("import os;", "import os; from harness.minirt.container.boundary import seal_imports;")
    sealed = sealed.replace("import graphlib", "seal_imports(); import graphlib")
    done = subprocess.run([sys.executable, "-c", sealed], timeout=60, check=False, capture_output=True, text=True)
    assert "ModuleNotFoundError: No module named 'graphlib'" in done.stderr

    hook = [{"path": "/bin/sh", "args": ["sh", "-c", "true"], "timeout": 9}]
    bundle.config["hooks"] = dict.fromkeys(("createContainer", "startContainer", "poststart"), hook)
    bundle.config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    bundle.config["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 100}]
    bundle.config["process"]["oomScoreAdj"] = 500
    bundle.config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "0"}
    assert bundle.run("echo here") == "here\n"
    bundle.config["process"]["terminal"] = True
    assert bundle.run("echo here").strip() == "here"
    bundle.config["process"]["terminal"] = False
    for args in (["nothing-of-this-name"], ["/etc/passwd"], ["/bin/sh", "-c", "exit 3"]):
        bundle.config["process"]["args"] = args
        bundle.minirt("run", "box")
    bundle.config["hooks"]["startContainer"] = [{"path": "/bin/sh", "args": ["sh", "-c", "exit 3"]}]
    assert bundle.minirt("run", "box").returncode == 1
    bundle.config["hooks"] = {}
    bundle.sh("while :; do sleep 0.05; done").create()
    bundle.ok("start", "box")
    for words in (("/bin/true",), ("nothing-of-this-name",), ("/etc/passwd",)):
        bundle.minirt("exec", "box", *words)
    bundle.ok("exec", "--tty", "box", "/bin/true")
    assert not sprung.exists(), sprung.read_text()
