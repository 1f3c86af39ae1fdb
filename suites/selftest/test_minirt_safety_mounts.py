"""Attacks on minirt by way of the root filesystem: links, exchanged folders, and things that stand where others should."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from minirt_bundle import Bundle, open_bundle

from harness.linux import syscalls

_EXCHANGER = """
import ctypes, os, random, sys, time
call = ctypes.CDLL(None).renameat2
os.chdir(sys.argv[1])
first, second = (os.fsencode(name) for name in sys.argv[2:4])
longest_s = float(sys.argv[4])
print(flush=True)
while os.getppid() == int(os.environ["PARENT"]):
    call(-100, first, -100, second, 2)  # RENAME_EXCHANGE
    if longest_s:
        time.sleep(random.random() * longest_s)
"""
_RUNS = 15


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    with open_bundle(tmp_path) as bundle:
        bundle.config["root"]["readonly"] = False
        yield bundle


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the machine's, which has to stay as it is."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_text("untouched")
    return folder


def _is_untouched(outside: Path) -> bool:
    return [path.name for path in outside.iterdir()] == ["file"] and (outside / "file").read_text() == "untouched"


@contextlib.contextmanager
def _exchanging(folder: Path, first: str, second: str, longest_s: float = 0.0) -> Iterator[None]:
    """Somebody who shares the folder, and lets two names in it change places all the time, or after a rest by chance."""
    words = [sys.executable, "-c", _EXCHANGER, str(folder), first, second, str(longest_s)]
    environ = os.environ | {"PARENT": str(os.getpid())}
    with subprocess.Popen(words, env=environ, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def _mount(destination: str, source: Path | str = "tmpfs", kind: str = "tmpfs", *options: str) -> dict[str, object]:
    return {"destination": destination, "type": kind, "source": str(source), "options": list(options)}


# ---- links

_LINKS = {"absolute": "{}", "relative": "../../../../../../../../../..{}", "own-root": "/proc/self/root/../../..{}"}


@pytest.mark.parametrize("link", _LINKS.values(), ids=_LINKS)
@pytest.mark.parametrize("below", ["", "/new/folder"], ids=["itself", "parent"])
def test_a_destination_that_is_a_link_stays_in_the_root(bundle: Bundle, outside: Path, link: str, below: str) -> None:
    (bundle.rootfs / "way").symlink_to(link.format(outside))
    (bundle.folder / "data").mkdir()
    (bundle.folder / "text").write_text("text")
    destination = f"/way{below}"
    bundle.config["mounts"] += [
        _mount(destination),
        _mount(f"{destination}/bound", bundle.folder / "data", "bind", "bind"),
        _mount(f"{destination}/text", bundle.folder / "text", "bind", "bind"),
    ]
    bundle.config["linux"]["devices"] = [{"path": f"{destination}/null", "type": "c", "major": 1, "minor": 3}]
    done = bundle.sh(f"cat {destination}/text; echo here >{destination}/bound/proof").minirt("run", "box")
    if done.returncode == 0:
        assert done.stdout == "text"
        assert (bundle.folder / "data/proof").read_text() == "here\n"
    else:
        assert "self" in link  # through procfs nothing is reached at all
    assert _is_untouched(outside)
    assert bundle.leftovers() == []


@pytest.mark.parametrize("name", ["proc", "sys"])
@pytest.mark.parametrize("to", ["/elsewhere", "elsewhere", "{outside}"])
def test_proc_and_sys_are_not_mounted_through_a_link(bundle: Bundle, outside: Path, name: str, to: str) -> None:
    """CVE-2019-16884: masks and security labels would miss a procfs that is somewhere else."""
    (bundle.rootfs / "elsewhere").mkdir()
    (bundle.rootfs / name).symlink_to(to.format(outside=outside))
    done = bundle.sh("true").minirt("run", "box")
    assert done.returncode == 1
    assert "must be mounted on ordinary directory" in done.stderr or "inside" in done.stderr, done.stderr
    assert _is_untouched(outside)
    assert bundle.leftovers() == []


def test_a_folder_of_fakes_at_proc_is_covered(bundle: Bundle) -> None:
    for name in ("self/attr/exec", "sys/kernel/hostname", "sysrq-trigger", "keys"):
        path = bundle.rootfs / "proc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("fake")
    bundle.config["process"]["oomScoreAdj"] = 700
    shown = bundle.run("cat /proc/self/oom_score_adj /proc/keys; ls /proc/self/attr/exec")
    assert shown == "700\n/proc/self/attr/exec\n"
    assert (bundle.rootfs / "proc/self/attr/exec").read_text() == "fake"


@pytest.mark.parametrize(
    "mount",
    [
        _mount("/proc"),
        _mount("//proc/"),
        _mount("/proc", "{outside}", "bind", "bind"),
        _mount("/proc/self", "{outside}", "bind", "bind"),
        _mount("/proc/sys/kernel", "/proc/sys/net", "bind", "bind"),
        _mount("/proc/self/attr"),
        _mount("/way/self/attr", "{outside}", "bind", "bind"),
        _mount("/way", "{outside}", "bind", "bind"),
    ],
    ids=lambda mount: f"{mount['type']}-{mount['destination'].replace('/', '.')}",
)
def test_nothing_is_laid_over_proc(bundle: Bundle, outside: Path, mount: dict[str, object]) -> None:
    """CVE-2019-16884, CVE-2023-28642: who can fake procfs is asked for what a label or a sysctl is, and told of one."""
    (bundle.rootfs / "proc").mkdir()
    (bundle.rootfs / "way").symlink_to("/proc")
    bundle.config["mounts"].append(mount | {"source": str(mount["source"]).format(outside=outside)})
    done = bundle.sh("echo ran").minirt("run", "box")
    assert (done.returncode, done.stdout) == (1, ""), done.stdout
    assert "not of type proc" in done.stderr or "inside /proc" in done.stderr
    assert _is_untouched(outside)


def test_masked_and_readonly_paths_that_are_links_reach_nothing_outside(bundle: Bundle, outside: Path) -> None:
    (bundle.rootfs / "real").write_text("real")
    for name, to in {
        "a": f"{outside}/file",
        "b": str(outside),
        "c": "/real",
        "d": "../../../../../../etc/passwd",
    }.items():
        (bundle.rootfs / name).symlink_to(to)
    paths = ["/a", "/b", "/c", "/d", "/a/x", "/c/x"]
    bundle.config["linux"]["maskedPaths"] += paths
    bundle.config["linux"]["readonlyPaths"] += paths
    bundle.config["linux"]["rootfsPropagation"] = "shared"
    shown = bundle.run("cat /real /etc/passwd; echo x >/real 2>/dev/null || echo read-only")
    assert shown in ("", "read-only\n")
    assert Path("/etc/passwd").stat().st_size > 0
    (outside / "file").write_text("untouched")
    assert _is_untouched(outside)


def test_a_root_that_is_a_link_is_refused(bundle: Bundle) -> None:
    (bundle.folder / "link").symlink_to("rootfs")
    for path in ("link", str(bundle.folder / "link"), "link/../rootfs/../link"):
        bundle.config["root"]["path"] = path
        done = bundle.sh("true").minirt("run", "box")
        assert done.returncode == 1
        assert "symbolic link" in done.stderr
        assert bundle.leftovers() == []


# ---- somebody else in the same folder


def test_the_exchanger_leads_a_naive_runtime_astray(bundle: Bundle, outside: Path) -> None:
    """That the attack below is one: plain paths end up outside after a few tries."""
    (bundle.rootfs / "vol/a").mkdir(parents=True)
    (bundle.rootfs / "vol/b").symlink_to(outside)
    deadline = time.monotonic() + 30
    with _exchanging(bundle.rootfs / "vol", "a", "b"):
        number = 0
        while _is_untouched(outside):
            assert time.monotonic() < deadline
            number += 1
            with contextlib.suppress(OSError):
                (bundle.rootfs / f"vol/a/naive{number}").mkdir(parents=True)


def _start_among_exchanges(bundle: Bundle, outside: Path, number: int) -> bool:
    """Whether the container started; it can be hindered, and must not be led out."""
    volume, place = bundle.folder / "volume", f"/vol/a/{number}"
    bundle.config["mounts"][7:] = [
        _mount("/vol", volume, "bind", "bind"),
        _mount(f"{place}/bound", bundle.folder / "data", "bind", "bind"),
        _mount(f"{place}/text", bundle.folder / "text", "bind", "bind"),
        _mount(f"{place}/fresh", "tmpfs", "tmpfs", "ro"),
        _mount(f"{place}/copied", "tmpfs", "tmpfs", "tmpcopyup"),
    ]
    bundle.config["linux"]["devices"] = [{"path": f"{place}/null", "type": "c", "major": 1, "minor": 3}]
    bundle.config["linux"]["maskedPaths"] = ["/vol/a/file", f"{place}/text"]
    bundle.config["linux"]["readonlyPaths"] = ["/vol/a"]
    done = bundle.sh("cat /vol/a/file; echo started").minirt("run", "box")
    assert "untouched" not in done.stdout
    assert _is_untouched(outside)
    assert bundle.leftovers() == []
    return "started" in done.stdout


def test_exchanged_destinations_do_not_lead_out(bundle: Bundle, outside: Path) -> None:
    """CVE-2021-30465: the folder of a mount changes places with a link while containers start again and again."""
    (bundle.folder / "data").mkdir()
    (bundle.folder / "text").write_text("text")
    volume = bundle.folder / "volume"
    (volume / "a").mkdir(parents=True)
    (volume / "b").symlink_to(f"../../../../../../../../../../..{outside}")
    with _exchanging(volume, "a", "b"):  # hardly a container starts
        for number in range(_RUNS):
            _start_among_exchanges(bundle, outside, number)
    # With rests, an exchange comes at any place of a start, and some starts come through: all the mounts were tried.
    started, numbers, deadline = 0, itertools.count(_RUNS), time.monotonic() + 60
    with _exchanging(volume, "a", "b", 0.02):
        while started < 3:
            assert time.monotonic() < deadline
            started += _start_among_exchanges(bundle, outside, next(numbers))


def test_an_exchanged_proc_has_its_masks(bundle: Bundle) -> None:
    """CVE-2025-31133 and its like: the folder that procfs is mounted on moves away before its paths are hidden.

    The root filesystem is shared. Wherever the procfs is when the container starts, what has to be hidden in it is.
    """
    hidden, readonly = ("keys", "timer_list"), ("sys", "irq")
    bundle.config["linux"]["maskedPaths"] = [f"/proc/{name}" for name in hidden]
    bundle.config["linux"]["readonlyPaths"] = [f"/proc/{name}" for name in readonly]
    for folder in ("proc", "fake"):
        for name in (*hidden, "meminfo"):
            (bundle.rootfs / folder).mkdir(exist_ok=True)
            (bundle.rootfs / folder / name).write_text("fake")
        for name in readonly:
            (bundle.rootfs / folder / name).mkdir()
    where = set()
    script = "for d in /proc /fake; do cd $d; if [ -d self ]; then echo $d; cat keys self/mountinfo; exit; fi; done"
    with _exchanging(bundle.rootfs, "proc", "fake"):
        for _ in range(_RUNS):
            done = bundle.sh(script).minirt("run", "box")
            if done.returncode or not done.stdout:
                continue  # it can be hindered; that is no escape
            place, *lines = done.stdout.splitlines()
            where.add(place)
            assert all(" - " in line for line in lines), lines[:3]  # nothing of keys
            # While it is read the folders go on changing places: the last word of a path is what can be told.
            mounts = {line.split(" ")[4].rpartition("/")[2]: line.split(" ") for line in lines}
            assert sum(words[-3] == "proc" and words[3] == "/" for words in mounts.values()) == 1
            assert all(mounts[name][3] == "/null" for name in hidden)
            assert all(mounts[name][5].startswith("ro") for name in readonly)
    assert where


# ---- what stands where something else should


@pytest.mark.parametrize("kind", ["file", "block", "other"])
def test_masks_are_the_null_device(bundle: Bundle, kind: str) -> None:
    """CVE-2025-31133: what is bound over a masked file has to be the null device itself."""
    fake = bundle.folder / "fake"
    if kind == "file":
        fake.write_text("")
    else:
        os.mknod(
            fake,
            0o666 | (stat.S_IFBLK if kind == "block" else stat.S_IFCHR),
            os.makedev(1, 3 if kind == "block" else 5),
        )
    bundle.sh("true").write()
    words = [sys.executable, "-m", "harness.minirt", "--root", str(bundle.states), "run", "box"]
    script = f'exec 3</dev/null 4>/dev/null; mount --bind {fake} /dev/null && exec "$@" <&3'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *words],
        cwd=bundle.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "is not the null device" in done.stderr or "/dev/null" in done.stderr, done.stderr
    assert bundle.leftovers() == []


@pytest.mark.parametrize("target", ["/tmp/there", "/nowhere", "/proc/self/attr/exec"])
def test_a_console_that_is_a_link_is_refused(bundle: Bundle, target: str) -> None:
    """CVE-2025-52565: the terminal would be laid over something else."""
    dev = bundle.folder / "dev"
    dev.mkdir()
    (bundle.rootfs / "tmp/there").write_text("there")
    (dev / "console").symlink_to(target)
    bundle.config["mounts"][1] = _mount("/dev", dev, "bind", "bind")
    for name in ("pts", "shm", "mqueue"):
        (dev / name).mkdir()
    bundle.config["process"]["terminal"] = True
    done = bundle.sh("echo ran").minirt("run", "box")
    assert (done.returncode, done.stdout) == (1, "")
    assert "/dev/console" in done.stderr
    assert (bundle.rootfs / "tmp/there").read_text() == "there"
    assert not (bundle.rootfs / "nowhere").exists()


def _lay_pipe(folder: Path) -> None:
    os.mkfifo(folder / "ptmx")


def _lay_device(folder: Path) -> None:
    os.mknod(folder / "ptmx", 0o666 | stat.S_IFCHR, os.makedev(1, 5))


def _lay_link(folder: Path) -> None:
    (folder / "ptmx").symlink_to("/dev/full")


@pytest.mark.parametrize("lay", [_lay_pipe, _lay_device, _lay_link])
def test_a_terminal_comes_from_a_devpts_only(bundle: Bundle, lay: object) -> None:
    """What is opened as ``ptmx`` is a device of the kernel's: neither a pipe, which would keep us waiting, nor another one."""
    folder = bundle.folder / "pts"
    folder.mkdir()
    lay(folder)  # type: ignore[operator]
    bundle.config["mounts"][2] = _mount("/dev/pts", folder, "bind", "bind")
    bundle.config["process"]["terminal"] = True
    done = bundle.sh("echo ran").minirt("run", "box")
    assert (done.returncode, done.stdout) == (1, "")
    assert "a terminal needs a devpts on /dev/pts" in done.stderr
    bundle.config["process"]["terminal"] = False
    bundle.sh("while :; do sleep 0.05; done").create()
    bundle.ok("start", "box")
    done = bundle.minirt("exec", "--tty", "box", "/bin/echo", "ran")
    assert (done.returncode, done.stdout) == (255, "")
    assert "a terminal needs a devpts on /dev/pts" in done.stderr


def test_pipes_and_devices_in_the_image_hold_nobody_up(bundle: Bundle) -> None:
    (bundle.rootfs / "etc/passwd").unlink()
    os.mkfifo(bundle.rootfs / "etc/passwd")
    os.mkfifo(bundle.rootfs / "place")
    os.mkfifo(bundle.rootfs / "hidden")
    os.mknod(bundle.rootfs / "full", 0o666 | stat.S_IFCHR, os.makedev(1, 7))
    (bundle.folder / "text").write_text("text")
    bundle.config["mounts"] += [
        _mount("/place", bundle.folder / "text", "bind", "bind"),
        _mount("/full", bundle.folder / "text", "bind", "bind"),
    ]
    bundle.config["linux"]["maskedPaths"].append("/hidden")
    writer = os.open(bundle.rootfs / "etc/passwd", os.O_RDWR)  # now it has a writer, who writes nothing
    try:
        assert bundle.run("cat /place /full /hidden; echo $HOME") == "texttext/\n"
    finally:
        os.close(writer)


@pytest.mark.parametrize("what", ["device", "sparse"])
def test_an_endless_passwd_is_not_read_to_its_end(bundle: Bundle, what: str) -> None:
    passwd = bundle.rootfs / "etc/passwd"
    passwd.unlink()
    if what == "device":
        os.mknod(passwd, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    else:
        with passwd.open("wb") as file:
            file.truncate(1 << 40)
    bundle.config["linux"]["resources"]["memory"] = {"limit": 64 << 20}
    assert bundle.run("echo $HOME") == "/\n"


# ---- procfs


def _in_own_mounts(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a mount namespace of its own, with what a container could do to its /proc."""
    head = "import os, sys; from harness.linux import syscalls; from harness.minirt.container import procfs;"
    head += "syscalls.unshare(syscalls.CLONE_NEWNS); syscalls.mount(None, '/', None, syscalls.MS_PRIVATE | syscalls.MS_REC);"
    return subprocess.run(
        [sys.executable, "-c", head + script, *words], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_fake_procfs_is_not_taken_for_one(tmp_path: Path) -> None:
    fake = "syscalls.mount('tmpfs', '/proc', 'tmpfs'); procfs.open_procfs()"
    assert "is not a proc filesystem" in _in_own_mounts(fake).stderr
    part = "syscalls.mount('/proc/sys', '/proc', None, syscalls.MS_BIND); procfs.open_procfs()"
    assert "is not a proc filesystem" in _in_own_mounts(part).stderr


@pytest.mark.parametrize("over", ["file", "another", "link"])
def test_a_write_to_procfs_is_not_redirected(tmp_path: Path, over: str) -> None:
    """CVE-2025-52881: another file of procfs, here ``comm``, is laid over the one that is to be written."""
    (tmp_path / "file").write_text("untouched")
    lay = {
        "file": f"syscalls.mount({str(tmp_path / 'file')!r}, '/proc/self/oom_score_adj', None, syscalls.MS_BIND)",
        "another": "syscalls.mount('/proc/self/comm', '/proc/self/oom_score_adj', None, syscalls.MS_BIND)",
        "link": f"syscalls.mount('tmpfs', '/proc/self/', 'tmpfs'); os.symlink({str(tmp_path / 'file')!r}, '/proc/self/oom_score_adj')",
    }[over]
    plain = f"{lay}; open('/proc/self/oom_score_adj', 'w').write('300'); print(open('/proc/self/oom_score_adj').read())"
    assert _in_own_mounts(plain).stdout.strip() == "300"  # so it is somebody else's file that was written
    (tmp_path / "file").write_text("untouched")
    ours = f"proc = procfs.open_procfs(); {lay}; procfs.write_file(proc, 'self/oom_score_adj', '300')"
    done = _in_own_mounts(ours)
    assert "Invalid cross-device link" in done.stderr
    assert (tmp_path / "file").read_text() == "untouched"


def test_joining_a_mount_namespace_does_not_redirect_writes(bundle: Bundle) -> None:
    """The /proc of a mount namespace that is joined is whatever its owner has put there."""
    fake = bundle.folder / "fake"
    for name in ("self/oom_score_adj", "sys/net/ipv4/ip_forward", "self/timens_offsets", "self/mountinfo"):
        (fake / name).parent.mkdir(parents=True, exist_ok=True)
        (fake / name).write_text("untouched")
    script = f"mount --bind {fake} /proc && echo ready && exec sleep 100"
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE) as host:
        try:
            assert host.stdout is not None
            assert host.stdout.readline() == b"ready\n"
            namespaces = bundle.config["linux"]["namespaces"]
            for entry in namespaces:
                if entry["type"] == "mount":
                    entry["path"] = f"/proc/{host.pid}/ns/mnt"
            namespaces.append({"type": "time"})
            bundle.config["linux"] |= {
                "sysctl": {"net.ipv4.ip_forward": "1"},
                "timeOffsets": {"boottime": {"secs": 5}},
                "maskedPaths": [],
                "readonlyPaths": [],
            }
            bundle.config["process"]["oomScoreAdj"] = 600
            bundle.config["mounts"] = []
            done = bundle.sh("echo ran").minirt("run", "box")
        finally:
            host.kill()
    assert all(path.read_text() == "untouched" for path in fake.rglob("*") if path.is_file()), done.stderr


@pytest.mark.parametrize("words", [(), ("--no-pivot",)], ids=["pivot", "no-pivot"])
def test_no_second_procfs_without_masks(bundle: Bundle, words: tuple[str, ...]) -> None:
    """In a user namespace of its own a container could mount another procfs, if a whole one were in its mount namespace."""
    bundle.have("mount", "unshare")  # which any user may, in a user namespace of their own
    script = "unshare -U -r -m -p -f /bin/sh -c '/bin/mount -t proc proc /tmp && echo mounted'; exit 0"
    bundle.config["process"]["user"] = {"uid": 1000, "gid": 1000}
    done = bundle.sh(script).minirt("run", *words, "box")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "permitted" in done.stderr.lower() or "denied" in done.stderr.lower()
    bundle.config["linux"]["maskedPaths"] = bundle.config["linux"]["readonlyPaths"] = []
    assert bundle.sh(script).ok("run", "box") == "mounted\n"  # so it is the masks that keep it from that


def test_statfs_tells_filesystems_apart() -> None:
    for path, magic in (("/proc", syscalls.PROC_SUPER_MAGIC), ("/sys", syscalls.SYSFS_MAGIC)):
        fd = os.open(path, os.O_PATH)
        assert syscalls.filesystem_type(fd) == magic
        os.close(fd)
