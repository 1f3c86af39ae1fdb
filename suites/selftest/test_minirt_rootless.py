"""Containers of a normal user: everything is done with that user's rights alone."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from minirt_user import GID, SUBIDS, UID, UserBundle, open_user_bundle

from harness.minirt.container import cgroup as cgroups
from harness.minirt.container.state import start_ticks

LOOP = "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done"
NEEDS_UIDMAP = pytest.mark.skipif(
    shutil.which("newuidmap") is None, reason="newuidmap is not installed (package uidmap)"
)


@pytest.fixture
def bundle() -> Iterator[UserBundle]:
    with open_user_bundle() as bundle:
        yield bundle


def _status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def test_run_as_a_user(bundle: UserBundle) -> None:
    done = bundle.sh("id -u; id -g; cat /proc/self/setgroups; echo $$; hostname; touch /tmp/mine; exit 7").minirt(
        "run", "box"
    )
    assert (done.returncode, done.stdout.split()) == (7, ["0", "0", "deny", "1", "minirt"]), done.stderr
    assert (bundle.rootfs / "tmp/mine").stat().st_uid == UID
    assert list(bundle.states.iterdir()) == []


def test_the_process_has_the_users_rights(bundle: UserBundle) -> None:
    bundle.sh(LOOP).create()
    status = _status_of(bundle.state()["pid"])
    assert status["Uid"].split() == [str(UID)] * 4
    assert status["Gid"].split() == [str(GID)] * 4


def test_voyage(bundle: UserBundle) -> None:
    bundle.sh(LOOP).create()
    assert bundle.state()["status"] == "created"
    bundle.ok("start", "box")
    bundle.await_output("up")
    assert bundle.state()["status"] == "running"
    assert bundle.ok("list", "--quiet") == "box\n"
    shown = bundle.ok(
        "exec", "box", "/bin/sh", "-c", "id -u; ls /; readlink /proc/self/ns/pid; readlink /proc/1/ns/pid"
    )
    lines = shown.split()
    assert lines[0] == "0"
    assert {"bin", "etc"} <= set(lines)
    assert len({word for word in lines if word.startswith("pid:")}) == 1
    assert bundle.minirt("exec", "box", "/bin/sh", "-c", "exit 5").returncode == 5
    assert bundle.minirt("exec", "box", "nothing-of-this-name").returncode == 255
    assert bundle.ok("exec", "--tty", "box", "/bin/tty").strip() == "/dev/pts/0"
    bundle.ok(
        "exec",
        "--detach",
        "--pid-file",
        str(bundle.home / "run/pid"),
        "box",
        "/bin/sleep",
        "100",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        capture_output=False,
    )
    second = int((bundle.home / "run/pid").read_text())
    assert _status_of(second)["Uid"].split()[0] == str(UID)
    assert json.loads(bundle.ok("ps", "--format", "json", "box"))[:2] == sorted((bundle.state()["pid"], second))
    bundle.ok("kill", "--all", "box", "TERM")
    bundle.await_status("stopped")
    assert start_ticks(second) == 0  # it went with the pid namespace
    bundle.ok("delete", "box")
    assert list(bundle.states.iterdir()) == []


def test_delete_by_force(bundle: UserBundle) -> None:
    bundle.sh(LOOP).create()
    pid = bundle.state()["pid"]
    bundle.ok("delete", "--force", "box")
    assert start_ticks(pid) == 0
    assert list(bundle.states.iterdir()) == []


def test_states_are_the_users_own(bundle: UserBundle) -> None:
    bundle.sh(LOOP).create()
    status = bundle.states.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (UID, 0o1700)
    assert bundle.minirt("list", environ={"XDG_RUNTIME_DIR": ""}).returncode == 1
    assert "XDG_RUNTIME_DIR is not set: --root" in bundle.minirt("list", environ={"XDG_RUNTIME_DIR": ""}).stderr
    other = bundle.run_folder / "other"
    assert bundle.ok("--root", str(other), "list", "--quiet", environ={"XDG_RUNTIME_DIR": ""}) == ""


@pytest.mark.parametrize("network", [False, True], ids=["shared-network", "own-network"])
def test_filesystems_and_devices(bundle: UserBundle, network: bool) -> None:
    if network:
        bundle.config["linux"]["namespaces"].append({"type": "network"})
    shown = bundle.run(
        "echo x >/dev/null && head -c 4 /dev/zero | wc -c; ls /dev; ls /sys/class; cat /proc/self/mountinfo"
    )
    assert shown.split()[0] == "4"
    mounts = {line.split(" ")[4]: line for line in shown.splitlines() if " - " in line}
    assert {"/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/dev/null", "/dev/tty"} <= set(mounts)
    assert "net" in shown.split()
    assert " ro," in mounts["/sys"]
    for path in ("/dev/pts", "/dev/shm", "/dev/mqueue", "/sys"):
        assert "nosuid" in mounts[path], path


def test_a_terminal(bundle: UserBundle) -> None:
    bundle.config["process"]["terminal"] = True
    assert bundle.run("tty; ls -l /dev/console | cut -c1").split() == ["/dev/pts/0", "c"]


def test_hooks_run_as_the_user(bundle: UserBundle) -> None:
    names = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    place = {name: "/tmp" if name == "startContainer" else f"{bundle.rootfs}/tmp" for name in names}
    bundle.config["hooks"] = {
        name: [{"path": "/bin/sh", "args": ["sh", "-c", f"id -u >{place[name]}/{name}"], "env": ["PATH=/usr/bin:/bin"]}]
        for name in names
    }
    bundle.run("true")
    shown = {name: (bundle.rootfs / "tmp" / name).read_text().strip() for name in names}
    inside = ("createContainer", "startContainer")
    assert shown == {name: "0" if name in inside else str(UID) for name in names}


# ---- ids


@NEEDS_UIDMAP
def test_granted_ids_are_mapped(bundle: UserBundle) -> None:
    bundle.map_more()
    bundle.config["process"]["user"] = {"uid": 33, "gid": 44, "additionalGids": [55]}
    (bundle.rootfs / "tmp").chmod(0o777)
    shown = bundle.run("id; cat /proc/self/uid_map; touch /tmp/theirs").split()
    assert shown[:3] == ["uid=33", "gid=44", "groups=55"]
    assert shown[3:] == ["0", str(UID), "1", "1", str(SUBIDS), "1000"]
    found = (bundle.rootfs / "tmp/theirs").stat()
    assert (found.st_uid, found.st_gid) == (SUBIDS + 32, SUBIDS + 43)


@NEEDS_UIDMAP
def test_voyage_with_granted_ids(bundle: UserBundle) -> None:
    """The process is by its id nobody that the user is: the user namespace is what makes it theirs."""
    bundle.map_more()
    bundle.config["process"]["user"] = {"uid": 33, "gid": 44}
    bundle.sh(LOOP).create()
    bundle.ok("start", "box")
    bundle.await_output("up")
    assert _status_of(bundle.state()["pid"])["Uid"].split()[0] == str(SUBIDS + 32)
    assert bundle.ok("exec", "box", "/bin/id", "-u") == "33\n"
    assert bundle.ok("exec", "--user", "0:0", "box", "/bin/id", "-u") == "0\n"
    bundle.ok("kill", "box", "KILL")
    bundle.await_status("stopped")
    bundle.ok("delete", "box")


@NEEDS_UIDMAP
def test_ids_that_are_not_granted(bundle: UserBundle) -> None:
    bundle.config["linux"]["uidMappings"].append({"containerID": 1, "hostID": 1, "size": 10})
    done = bundle.sh("true").minirt("run", "box")
    assert done.returncode == 1
    assert "map ids: newuidmap: uid range [1-11) -> [1-11) not allowed" in done.stderr
    assert list(bundle.states.iterdir()) == []


def test_ids_of_others_without_the_programs_that_map_them(bundle: UserBundle) -> None:
    bundle.map_more()
    done = bundle.sh("true").minirt("run", "box", environ={"PATH": "/nowhere"})
    assert done.returncode == 1
    assert "newuidmap is not installed (package uidmap)" in done.stderr
    assert f"{UID}:{GID}" in done.stderr


def test_root_of_the_container_can_be_somebody_else(bundle: UserBundle) -> None:
    bundle.config["linux"]["uidMappings"][0]["hostID"] = 0
    done = bundle.sh("true").minirt("run", "box")
    assert done.returncode == 1
    assert "map ids" in done.stderr
    assert list(bundle.states.iterdir()) == []


# ---- what a user cannot have


def _refuse(bundle: UserBundle, *words: str) -> str:
    done = bundle.sh("echo ran").minirt(*words, "run", "box")
    assert (done.returncode, done.stdout) == (1, "")
    assert not bundle.states.exists() or list(bundle.states.iterdir()) == []
    return done.stderr


def test_a_user_namespace_is_needed(bundle: UserBundle) -> None:
    bundle.config["linux"]["namespaces"].pop(0)
    del bundle.config["linux"]["uidMappings"], bundle.config["linux"]["gidMappings"]
    assert "linux.namespaces: has no user namespace" in _refuse(bundle)


def test_options_of_unmapped_ids(bundle: UserBundle) -> None:
    bundle.config["mounts"][2]["options"].append("gid=5")
    assert "mounts[2].options: gid=5: the id is not mapped into the container" in _refuse(bundle)


def test_groups_without_the_right_to_set_them(bundle: UserBundle) -> None:
    bundle.config["process"]["user"]["additionalGids"] = [0]
    assert "process.user.additionalGids" in _refuse(bundle)


def test_mapped_mounts(bundle: UserBundle) -> None:
    mount = {"destination": "/mnt", "type": "bind", "source": str(bundle.rootfs), "options": ["bind", "idmap"]}
    bundle.config["mounts"].append(mount)
    assert "mounts with mapped ids need root" in _refuse(bundle)


def test_without_a_cgroup_it_is_said(bundle: UserBundle, tmp_path: Path) -> None:
    done = bundle.sh("echo ran").minirt("run", "box")
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert "warning: the container has no cgroup" in done.stderr
    log = bundle.run_folder / "log"
    bundle.ok("--log", str(log), "--log-format", "json", "run", "box")
    (line,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert line["level"] == "warning"
    assert "has no cgroup" in line["msg"]


def test_without_a_cgroup_nor_a_pid_namespace(bundle: UserBundle) -> None:
    bundle.config["linux"]["namespaces"] = [
        entry for entry in bundle.config["linux"]["namespaces"] if entry["type"] != "pid"
    ]
    done = bundle.sh("echo ran").minirt("run", "box")
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    assert "processes can outlive it" in done.stderr


def test_no_pause_without_a_cgroup(bundle: UserBundle) -> None:
    bundle.sh(LOOP).create()
    bundle.ok("start", "box")
    done = bundle.minirt("pause", "box")
    assert done.returncode == 1
    assert "cannot pause: the container has no cgroup with a freezer" in done.stderr


@pytest.mark.parametrize(
    ("resources", "file"),
    [
        ({"memory": {"limit": 64 << 20}}, "memory."),
        ({"pids": {"limit": 10}}, "pids.max"),
        ({"cpu": {"shares": 100}}, "cpu."),
    ],
)
def test_limits_that_cannot_be_set_are_an_error(bundle: UserBundle, resources: dict[str, object], file: str) -> None:
    bundle.config["linux"]["resources"] = resources
    said = _refuse(bundle)
    assert f"cannot set {file}" in said
    assert "this user may not make the cgroup" in said


def test_rules_for_devices_are_left_out(bundle: UserBundle) -> None:
    bundle.config["linux"]["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    assert bundle.run("echo ran") == "ran\n"


def test_a_path_of_a_cgroup_that_cannot_be_had_is_an_error(bundle: UserBundle) -> None:
    bundle.config["linux"]["cgroupsPath"] = "/somewhere/box"
    assert "linux.cgroupsPath: this user may not make the cgroup" in _refuse(bundle)


def test_rootless_by_word(bundle: UserBundle) -> None:
    assert "cannot make the cgroup" in _refuse(bundle, "--rootless", "false")
    assert "none of true, false and auto" in _refuse(bundle, "--rootless", "perhaps")
    assert bundle.sh("echo ran").ok("--rootless", "true", "run", "box") == "ran\n"


def test_limits_of_the_process_stay_within_the_users(bundle: UserBundle) -> None:
    bundle.config["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 1 << 40, "hard": 1 << 40}]
    bundle.config["process"]["oomScoreAdj"] = -900
    own = Path("/proc/self/oom_score_adj").read_text()
    done = bundle.sh("cat /proc/self/oom_score_adj; ulimit -Hn").minirt("run", "box")
    assert done.returncode == 0, done.stderr
    score, most = done.stdout.split()
    assert int(score) == int(own)
    assert most == "unlimited" or int(most) < 1 << 40
    assert "process.oomScoreAdj: -900 is below" in done.stderr
    assert "process.rlimits[0]" in done.stderr
    bundle.config["process"] |= {"oomScoreAdj": 800, "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 50, "hard": 60}]}
    assert bundle.run("cat /proc/self/oom_score_adj; ulimit -n; ulimit -Hn").split() == ["800", "50", "60"]


# ---- where more is granted


@contextlib.contextmanager
def _delegated() -> Iterator[str]:
    """Cgroups that are made over to the user; their path."""
    path = f"/seatrial-test-user-{os.getpid()}"
    layout = cgroups.read_layout()
    hierarchies = layout.v1.values() if layout.version == 1 else [layout.unified]
    folders = list(dict.fromkeys(Path(f"{hierarchy.folder}{path}") for hierarchy in hierarchies if hierarchy))
    try:
        for folder in folders:
            folder.mkdir()
            for file in (folder, *folder.glob("cgroup.*"), *folder.glob("tasks")):
                os.chown(file, UID, GID)
        yield path
    finally:
        for folder in folders:
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()


@pytest.mark.skipif(
    cgroups.read_layout().version == 2, reason="a user's own cgroup has to be below the delegated one on v2"
)
def test_a_delegated_cgroup(bundle: UserBundle) -> None:
    with _delegated() as path:
        bundle.config["linux"]["cgroupsPath"] = f"{path}/box"
        bundle.config["linux"]["resources"] = {"pids": {"limit": 20}, "memory": {"limit": 64 << 20}}
        bundle.sh(LOOP).create()
        bundle.ok("start", "box")
        bundle.await_output("up")
        pid = bundle.state()["pid"]
        assert f":pids:{path}/box\n" in Path(f"/proc/{pid}/cgroup").read_text()
        folder = cgroups.read_layout().v1["pids"].folder
        assert Path(f"{folder}{path}/box/pids.max").read_text() == "20\n"
        assert pid in json.loads(bundle.ok("ps", "--format", "json", "box"))
        bundle.ok("pause", "box")
        assert bundle.state()["status"] == "paused"
        bundle.ok("resume", "box")
        assert bundle.ok("exec", "box", "/bin/cat", "/proc/self/cgroup") == bundle.ok(
            "exec", "box", "/bin/cat", "/proc/1/cgroup"
        )
        bundle.ok("delete", "--force", "box")
        assert not Path(f"{folder}{path}/box").exists()


def test_joining_a_user_namespace(bundle: UserBundle) -> None:
    """A second container in the user, ipc and uts namespaces of a first one, with mounts and processes of its own."""
    bundle.sh(LOOP).create("first")
    bundle.ok("start", "first")
    pid = bundle.state("first")["pid"]
    namespaces = bundle.config["linux"]["namespaces"]
    for entry in namespaces:
        if entry["type"] in ("user", "ipc", "uts"):
            entry["path"] = f"/proc/{pid}/ns/{entry['type']}"
    del bundle.config["linux"]["uidMappings"], bundle.config["linux"]["gidMappings"], bundle.config["hostname"]
    shown = (
        bundle.sh("id -u; echo $$; for n in user ipc pid; do readlink /proc/self/ns/$n; done").ok("run", "box").split()
    )
    assert shown[:2] == ["0", "1"]
    assert shown[2] == str(Path(f"/proc/{pid}/ns/user").readlink())
    assert shown[3] == str(Path(f"/proc/{pid}/ns/ipc").readlink())
    assert shown[4] != str(Path(f"/proc/{pid}/ns/pid").readlink())


@pytest.mark.parametrize("nested", [True, False], ids=["own", "shared"])
def test_root_of_another_user_namespace(bundle: UserBundle, nested: bool) -> None:
    """As below ``podman unshare``: root by name, and a normal user's rights."""
    linux = bundle.config["linux"]
    if nested:
        for name in ("uidMappings", "gidMappings"):
            linux[name][0]["hostID"] = 0
    else:
        linux["namespaces"].pop(0)
        del linux["uidMappings"], linux["gidMappings"]
    inside = [str(shutil.which("unshare")), "--user", "--map-root-user", "--mount"]
    bundle.sh("id -u; echo $$; cat /proc/self/uid_map; echo x >/dev/null; exit 7")
    done = bundle.as_user([*inside, *bundle.command("run", "box")])
    assert done.returncode == 7, done.stderr
    assert done.stdout.split()[:3] == ["0", "1", "0"]
    assert "warning: the container has no cgroup" in done.stderr
    assert list(bundle.states.iterdir()) == []
    log = bundle.run_folder / "log"
    script = f"""
        "$@" create box >{log} 2>&1 </dev/null && "$@" start box && "$@" exec box /bin/id -u &&
        "$@" kill box KILL && "$@" delete --force box
    """
    bundle.sh(LOOP)
    done = bundle.as_user([*inside, "/bin/sh", "-c", script, "sh", *bundle.command()])
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr + log.read_text()
    assert list(bundle.states.iterdir()) == []
