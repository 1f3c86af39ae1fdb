"""What a process finds inside a container that minirt made."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from minirt_bundle import Bundle, open_bundle

from harness.linux.namespaces import identity
from harness.minirt.container import cgroup as cgroups
from harness.minirt.container.idmap import open_mapping
from harness.minirt.container.spec import IdMap


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    with open_bundle(tmp_path) as bundle:
        yield bundle


def test_names_root_and_devices(bundle: Bundle) -> None:
    lines = bundle.run("cat /proc/sys/kernel/hostname; echo $$; ls /; touch /new 2>&1; ls /dev").splitlines()
    assert lines[:2] == ["minirt", "1"]
    assert {"bin", "dev", "proc", "sys"} <= set(lines)
    assert "touch: /new: Read-only file system" in lines
    devices = {"fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "tty", "urandom", "zero", "mqueue"}
    assert devices <= set(lines[lines.index("touch: /new: Read-only file system") :])


def test_only_stdio_is_open(bundle: Bundle) -> None:
    read, write = os.pipe()
    try:
        bundle.sh("ls -l /proc/self/fd")
        done = bundle.ok("run", "box", pass_fds=(write,))
    finally:
        os.close(read)
        os.close(write)
    numbers = {line.split(" -> ")[0].split()[-1] for line in done.splitlines() if " -> " in line}
    assert {"0", "1", "2"} <= numbers <= {"0", "1", "2", "3"}  # 3 is the folder that ls reads


def test_preserved_fds_are_handed_on(bundle: Bundle) -> None:
    read, write = os.pipe()
    try:
        bundle.sh(f"echo there >&{write}")
        # The lowest free numbers were taken, so all below are open.
        bundle.ok("run", "--preserve-fds", str(write - 2), "box", pass_fds=range(3, write + 1))
        assert os.read(read, 100) == b"there\n"
    finally:
        os.close(read)
        os.close(write)


def test_signals_are_not_ignored(bundle: Bundle) -> None:
    bundle.config["process"]["args"] = ["/bin/grep", "^Sig", "/proc/self/status"]
    masks = dict(line.split(":\t") for line in bundle.ok("run", "box").splitlines())
    # 32 and 33 are the C library's own: make starts its children with them ignored (posix_spawn), and nobody can undo it.
    assert int(masks["SigIgn"], 16) & ~(3 << 31) == 0
    assert int(masks["SigBlk"], 16) == 0


def test_user_groups_umask_and_home(bundle: Bundle) -> None:
    bundle.config["process"]["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o77}
    shown = bundle.run("id; umask; echo $HOME; grep ^Cap /proc/self/status").splitlines()
    assert shown[:3] == ["uid=1000(user) gid=1001 groups=5,6", "0077", "/home/user"]
    masks = dict(line.split(":\t") for line in shown[3:])
    assert int(masks["CapEff"], 16) == int(masks["CapPrm"], 16) == 0
    assert int(masks["CapBnd"], 16) == (1 << 29 | 1 << 10 | 1 << 5)


def test_ambient_capabilities_reach_a_user(bundle: Bundle) -> None:
    sets = ("bounding", "effective", "permitted", "inheritable", "ambient")
    bundle.config["process"]["capabilities"] = {name: ["CAP_KILL", "CAP_NOBODY_KNOWS"] for name in sets}
    bundle.config["process"]["user"] = {"uid": 1000, "gid": 1000}
    masks = dict(line.split(":\t") for line in bundle.run("grep ^Cap /proc/self/status").splitlines())
    assert {name: int(mask, 16) for name, mask in masks.items()} == dict.fromkeys(masks, 1 << 5)


def test_no_capabilities_without_the_field(bundle: Bundle) -> None:
    del bundle.config["process"]["capabilities"]
    masks = bundle.run("grep -E '^Cap(Eff|Prm|Bnd)' /proc/self/status").splitlines()
    assert [int(line.split("\t")[1], 16) for line in masks] == [0, 0, 0]


def test_rlimits(bundle: Bundle) -> None:
    bundle.config["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]
    assert bundle.run("ulimit -n; ulimit -Hn") == "100\n200\n"


@pytest.mark.parametrize("no_new_privileges", [True, False])
@pytest.mark.parametrize("uid", [0, 1000])
def test_seccomp(bundle: Bundle, no_new_privileges: bool, uid: int) -> None:
    bundle.config["process"]["noNewPrivileges"] = no_new_privileges
    bundle.config["process"]["user"] = {"uid": uid, "gid": uid}
    bundle.config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
    }
    shown = bundle.run("mkdir /dev/shm/x 2>&1; grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status").splitlines()
    assert "Function not implemented" in shown[0]
    assert shown[1:] == [f"NoNewPrivs:\t{int(no_new_privileges)}", "Seccomp:\t2"]


def test_masked_and_readonly_paths(bundle: Bundle) -> None:
    (bundle.rootfs / "secret").write_text("secret")
    (bundle.rootfs / "hidden").mkdir()
    (bundle.rootfs / "hidden/file").write_text("x")
    (bundle.rootfs / "kept").mkdir()
    bundle.config["root"]["readonly"] = False
    bundle.config["linux"]["maskedPaths"] = ["/secret", "/hidden", "/is/not/there"]
    bundle.config["linux"]["readonlyPaths"] = ["/kept", "/is/not/there"]
    shown = bundle.run("cat /secret; ls /hidden; touch /kept/x 2>&1; touch /hidden/x 2>&1; touch /free && echo free")
    assert shown == "touch: /kept/x: Read-only file system\ntouch: /hidden/x: Read-only file system\nfree\n"


def test_mounts(bundle: Bundle, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "below").mkdir(parents=True)
    (data / "file").write_text("content\n")
    bundle.config["mounts"] += [
        {"destination": "/data", "type": "bind", "source": str(data), "options": ["rbind", "ro", "nosuid"]},
        {"destination": "/deep/file", "type": "bind", "source": str(data / "file"), "options": ["bind"]},
        {"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "mode=1770", "noexec"]},
    ]
    script = "cat /data/file /deep/file; touch /data/x 2>&1; touch /scratch/x; stat -c %a /scratch; grep /scratch /proc/mounts"
    lines = bundle.run(script).splitlines()
    assert lines[:4] == ["content", "content", "touch: /data/x: Read-only file system", "1770"]
    assert "noexec" in lines[4]
    assert bundle.leftovers() == []


def test_counters_that_engines_read_are_the_containers_own(bundle: Bundle) -> None:
    """`docker stats` shows what the cgroups of the first process have counted, of block devices too."""
    bundle.sh("sleep 1000").create()
    pid = bundle.state()["pid"]
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    own = {name: path for _, joined, path in lines for name in joined.split(",")}
    counting = [name for name in ("memory", "cpuacct", "pids", "blkio", "") if name in cgroups.read_layout().v1]
    assert {own[name].rpartition("/")[2] for name in counting or [""]} == {"box"}
    bundle.ok("delete", "--force", "box")
    assert bundle.leftovers() == []


def test_a_tmpfs_has_the_mode_of_what_it_covers(bundle: Bundle) -> None:
    """Where nothing was there, the kernel's own: `podman run --tmpfs /t --user 1000` writes there."""
    (bundle.rootfs / "covered").mkdir(mode=0o710)
    bundle.config["mounts"] += [
        {"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]}
        for destination in ("/covered", "/fresh")
    ]
    assert bundle.run("stat -c %a /covered /fresh") == "710\n1777\n"


def test_mount_destination_cannot_leave_the_root(bundle: Bundle, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (bundle.rootfs / "link").symlink_to(outside)
    (bundle.rootfs / "up").symlink_to("../../../../../../../../outside")
    bundle.config["mounts"] += [
        {"destination": f"/{name}/made", "type": "tmpfs", "source": "tmpfs"} for name in ("link", "up", "../../escape")
    ]
    bundle.run("true")
    assert list(outside.iterdir()) == []
    assert not (tmp_path.parent / "escape").exists()
    assert (bundle.rootfs / str(outside).lstrip("/") / "made").is_dir()


def test_proc_behind_a_link_is_refused(bundle: Bundle) -> None:
    (bundle.rootfs / "elsewhere").mkdir()
    (bundle.rootfs / "proc").symlink_to("elsewhere")
    done = bundle.sh("true").minirt("run", "box")
    assert done.returncode == 1
    assert "must be mounted on ordinary directory" in done.stderr
    assert bundle.leftovers() == []


def test_working_directory_outside_the_root_is_refused(bundle: Bundle) -> None:
    folder = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        bundle.config["process"]["cwd"] = f"/proc/self/fd/{folder}"
        done = bundle.sh("pwd").minirt("run", "box", pass_fds=(folder,))
    finally:
        os.close(folder)
    assert done.returncode != 0
    assert done.stdout == ""


def test_working_directory_is_made(bundle: Bundle) -> None:
    bundle.config["process"]["cwd"] = "/made/deep"
    assert bundle.run("pwd") == "/made/deep\n"


def test_user_namespace(bundle: Bundle) -> None:
    bundle.config["linux"]["namespaces"].append({"type": "user"})
    for name in ("uidMappings", "gidMappings"):
        bundle.config["linux"][name] = [{"containerID": 0, "hostID": 0, "size": 10}]
    lines = bundle.run("cat /proc/self/uid_map; id; echo x > /dev/null && echo writable").splitlines()
    assert lines[0].split() == ["0", "0", "10"]
    assert lines[1].startswith("uid=0(root) gid=0")
    assert lines[2:] == ["writable"]


@pytest.mark.parametrize("own_user_namespace", [False, True])
def test_a_mount_with_mapped_ids(bundle: Bundle, tmp_path: Path, own_user_namespace: bool) -> None:
    (tmp_path / "file").touch()
    os.chown(tmp_path / "file", 5, 6)
    tmp_path.chmod(0o755)  # its owner is another one inside
    maps = [{"containerID": 0, "hostID": 3, "size": 7}]
    mount = {"destination": "/mapped", "type": "bind", "source": str(tmp_path), "options": ["rbind"]}
    bundle.config["mounts"].append({**mount, "uidMappings": maps, "gidMappings": maps})
    if own_user_namespace:
        bundle.config["linux"]["namespaces"].append({"type": "user"})
        same = [{"containerID": 0, "hostID": 0, "size": 10}]
        bundle.config["linux"] |= dict.fromkeys(("uidMappings", "gidMappings"), same)
    assert bundle.run("stat -c %u:%g /mapped/file; stat -c %u /bin").split() == ["8:9", "0"]


def test_a_user_namespace_by_path(bundle: Bundle) -> None:
    """With a pid namespace of the container's own, which then belongs to it."""
    maps = [IdMap(0, 0, 10)]
    user = open_mapping(maps, maps)
    try:
        path = f"/proc/{os.getpid()}/fd/{user}"
        bundle.config["linux"]["namespaces"].append({"type": "user", "path": path})
        lines = bundle.run("cat /proc/self/uid_map; echo $$; stat -L -c %i /proc/self/ns/user").splitlines()
        assert lines[0].split() == ["0", "0", "10"]
        assert lines[1:] == ["1", str(os.fstat(user).st_ino)]
    finally:
        os.close(user)


def test_namespaces_by_path(bundle: Bundle) -> None:
    own = {kind: identity("self", kind)[1] for kind in ("net", "ipc", "uts", "pid")}
    for entry in bundle.config["linux"]["namespaces"]:
        kind = {"network": "net"}.get(entry["type"], entry["type"])
        if kind in own:
            entry["path"] = f"/proc/{os.getpid()}/ns/{kind}"
    del bundle.config["hostname"]
    shown = bundle.run("for n in net ipc uts pid; do stat -L -c %i /proc/self/ns/$n; done").split()
    assert [int(word) for word in shown] == list(own.values())


def test_loopback_is_up_and_sysctls_are_set(bundle: Bundle) -> None:
    bundle.config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.msgmax": "10000"}
    shown = bundle.run("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax /sys/class/net/lo/flags")
    assert shown.split()[:2] == ["1", "10000"]
    assert int(shown.split()[2], 16) & 1


def test_limits_reach_the_cgroup(bundle: Bundle) -> None:
    bundle.config["linux"]["resources"] = {
        "memory": {"limit": 33554432},
        "pids": {"limit": 40},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000},
    }
    v1 = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us 2>/dev/null"
    shown = bundle.run(f"{v1} || cat memory.max pids.max cpu.max").split()
    assert shown[:2] == ["33554432", "40"]
    assert shown[2] == "50000"


def test_devices_that_are_not_allowed_are_refused(bundle: Bundle) -> None:
    bundle.config["linux"]["devices"] = [
        {"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666},
        {"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o644, "uid": 4, "gid": 5},
    ]
    lines = bundle.run("(cat < /dev/kmsg) 2>&1; stat -c '%a %u %g' /dev/mine; cat /dev/mine && echo empty").splitlines()
    assert "Operation not permitted" in lines[0]
    assert lines[1:] == ["644 4 5", "empty"]


def test_terminal_over_the_console_socket(bundle: Bundle) -> None:
    bundle.config["process"]["terminal"] = True
    bundle.config["process"]["consoleSize"] = {"height": 33, "width": 99}
    bundle.sh("stty size; test -c /dev/console; read word; echo got $word")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(bundle.folder / "c"))
        listener.listen()
        with (bundle.folder / "out").open("w") as out:
            words = ("create", "--console-socket", "c", "box")
            bundle.ok(*words, stdout=out, stderr=out, capture_output=False)
        peer, _ = listener.accept()
        with peer:
            name, fds, _, _ = socket.recv_fds(peer, 100, 4)
    master = fds[0]
    try:
        assert name.startswith(b"/dev/pts/")
        bundle.ok("start", "box")
        os.write(master, b"hello\n")
        seen = b""
        while b"got hello" not in seen:
            seen += os.read(master, 1000)
        assert b"33 99" in seen
    finally:
        os.close(master)
