"""Hooks: their order, where they run, what they are given, and what comes of one that fails (config.md, runtime.md)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from minirt_bundle import Bundle, open_bundle

from harness.clock import wait_until
from harness.linux.namespaces import identity
from harness.minirt.container.channel import describe, restore
from harness.minirt.container.hooks import NAMES, Hook, run_hooks
from harness.minirt.errors import HookError

IN_THE_CONTAINER = ("createContainer", "startContainer")
KINDS = ("mnt", "pid", "net", "uts")
TELL = f"""
echo "$0 $(pwd)"
for kind in {" ".join(KINDS)}; do stat -L -c %i /proc/self/ns/$kind; done
cat
echo
"""
RUNTIMES = [
    "minirt",
    pytest.param("runc", marks=pytest.mark.skipif(shutil.which("runc") is None, reason="runc is not installed")),
]


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    with open_bundle(tmp_path) as bundle:
        bundle.config["root"]["readonly"] = False
        bundle.config["annotations"] = {"a": "b"}
        yield bundle


def hook(script: str, name: str = "sh", **more: Any) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script, name], **more}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_each_hook_has_its_moment_its_place_and_the_state(bundle: Bundle, runtime: str) -> None:
    # runc does not wait for the startContainer hooks before it runs those of poststart.
    names = [name for name in NAMES if runtime == "minirt" or name != "poststart"]
    said = bundle.folder / "said"
    said.mkdir()
    bundle.config["mounts"].append({"destination": "/said", "type": "bind", "source": str(said), "options": ["bind"]})
    bundle.config["hooks"] = {
        name: [
            # "path" of a createContainer hook resolves with the machine's files: the same folder has two names.
            hook(f"({TELL}) >> {'/said' if name == 'startContainer' else said}/{position}", name)
            for position in ("first", "second")
        ]
        for name in names
    }
    done = bundle.sh(f"stat -L -c %i {' '.join(f'/proc/self/ns/{kind}' for kind in KINDS)}").runtime(
        runtime, "run", "box"
    )
    assert done.returncode == 0, done.stderr
    inside = [int(line) for line in done.stdout.splitlines()]
    outside = [identity("self", kind)[1] for kind in KINDS]
    for position in ("first", "second"):
        lines = (said / position).read_text().splitlines()
        assert [line.split()[0] for line in lines[::6]] == names
        places = dict(zip(names, (line.split()[1] for line in lines[::6]), strict=True))
        assert places["startContainer"] == "/"
        if runtime == "minirt":
            assert places["createRuntime"] == str(bundle.folder)
            assert places["createContainer"] == str(bundle.rootfs)
        for index, name in enumerate(names):
            numbers = [int(line) for line in lines[6 * index + 1 : 6 * index + 5]]
            assert numbers == (inside if name in IN_THE_CONTAINER else outside), name
            state = json.loads(lines[6 * index + 5])
            assert (state["id"], state["bundle"], state["annotations"]) == ("box", str(bundle.folder), {"a": "b"})
            statuses = {"startContainer": "created", "poststart": "running", "poststop": "stopped"}
            assert state["status"] == statuses.get(name, "creating"), name
            if name in IN_THE_CONTAINER:
                assert state["pid"] == 1
            elif name == "poststop":
                assert state.get("pid", 0) == 0
            else:
                assert state["pid"] > 1
    assert bundle.leftovers() == []


def test_a_hook_has_its_own_environment_and_nothing_else(bundle: Bundle) -> None:
    said = bundle.folder / "said"
    bundle.config["hooks"] = {
        "createRuntime": [
            {"path": "/usr/bin/env", "args": ["env"], "env": ["A=1", "B=x=y", "C="]},
            hook(f"/usr/bin/env > {said}", env=["A=1", "B=x=y", "C="]),
        ]
    }
    bundle.run("true")
    assert {"A=1", "B=x=y", "C="} <= set(said.read_text().split())
    assert "HOME" not in said.read_text()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_hook_without_an_environment_has_what_callers_know(bundle: Bundle, runtime: str) -> None:
    said = bundle.folder / "said"
    said.mkdir()
    bundle.config["mounts"].append({"destination": "/said", "type": "bind", "source": str(said), "options": ["bind"]})
    shutil.copy("/bin/busybox", bundle.rootfs / "bin/env")
    bundle.config["process"]["env"] = ["ONE=two", "PATH=/bin"]
    bundle.config["hooks"] = {
        "prestart": [hook(f"echo $SECRET $ONE > {said}/prestart")],
        "createContainer": [hook(f"echo $SECRET > {said}/createContainer")],
        "startContainer": [hook("echo $SECRET $ONE $HOME > /said/startContainer")],
        "poststop": [hook(f"echo $SECRET $ONE > {said}/poststop"), hook(f"echo $SECRET > {said}/none", env=[])],
    }
    done = bundle.sh("true").runtime(runtime, "run", "box", env={**os.environ, "SECRET": "known"})
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_text().strip() for path in said.iterdir()} == {
        "prestart": "known",
        "createContainer": "",
        "startContainer": "two /root",
        "poststop": "known",
        "none": "",
    }


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("uid", [0, 1000])
def test_a_hook_of_the_image_has_the_rights_of_the_process(bundle: Bundle, runtime: str, uid: int) -> None:
    """It comes from the image: what is kept from the process must not be had by way of it."""
    tell = "grep -E '^(Cap(Eff|Prm|Amb|Bnd)|Seccomp|NoNewPrivs|Uid):' /proc/self/status"
    bundle.config["process"]["user"] = {"uid": uid, "gid": uid}
    bundle.config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    bundle.config["linux"]["seccomp"]["syscalls"] = [{"names": ["swapon"], "action": "SCMP_ACT_ERRNO"}]
    (bundle.rootfs / "said").mkdir(mode=0o777)
    (bundle.rootfs / "said").chmod(0o777)
    bundle.config["hooks"] = {"startContainer": [hook(f"{tell} > /said/hook")]}
    done = bundle.sh(f"{tell} > /said/process").runtime(runtime, "run", "box")
    assert done.returncode == 0, done.stderr
    said = (bundle.rootfs / "said/hook").read_text()
    assert said == (bundle.rootfs / "said/process").read_text()
    assert "Seccomp:\t2" in said


@pytest.mark.parametrize("name", ["prestart", "createRuntime", "createContainer"])
def test_a_hook_of_create_that_fails_undoes_it(bundle: Bundle, name: str) -> None:
    """The error tells what it said; the hooks after it do not run, those of poststop do, all of them."""
    after = bundle.folder / "after"
    bundle.config["hooks"] = {
        name: [hook("echo out; echo why >&2; exit 3"), hook(f"echo too late >> {after}")],
        "poststop": [hook("exit 1"), hook(f"cat >> {after}")],
    }
    done = bundle.sh("true").minirt("--log", "log", "create", "box")
    assert done.returncode == 1
    assert f"error running {name} hook #0: exit status 3" in done.stderr
    assert "why" in done.stderr
    assert json.loads(after.read_text())["status"] == "stopped"
    assert 'level=warning msg="error running poststop hook #0: exit status 1' in (bundle.folder / "log").read_text()
    assert bundle.leftovers() == []


@pytest.mark.parametrize("name", ["startContainer", "poststart"])
def test_a_hook_of_start_that_fails_ends_the_container(bundle: Bundle, name: str) -> None:
    """runtime.md "Lifecycle", 7 and 9: "generate an error, stop the container, and continue the lifecycle at step 12"."""
    after = bundle.folder / "after"
    # The hook of poststart runs beside the program: it fails once that has spoken.
    heard = f"until grep ran {bundle.folder}/out; do sleep 0.01; done; " if name == "poststart" else ""
    bundle.config["hooks"] = {
        name: [hook(f"{heard}echo why >&2; exit 3", timeout=20), hook("sleep 1")],
        "poststop": [hook(f"cat > {after}")],
    }
    bundle.sh("echo ran; sleep 1000").create()
    pid = bundle.state()["pid"]
    done = bundle.minirt("start", "box")
    assert done.returncode == 1
    assert f"error running {name} hook #0: exit status 3" in done.stderr
    assert "why" in done.stderr
    assert "does not exist" in bundle.minirt("state", "box").stderr
    assert json.loads(after.read_text())["id"] == "box"
    wait_until(lambda: not Path(f"/proc/{pid}/cwd").exists(), 20, "the process to have ended")
    assert (bundle.output() == "") == (name == "startContainer")
    assert bundle.leftovers() == []


@pytest.mark.parametrize("name", ["startContainer", "poststart"])
def test_run_ends_too(bundle: Bundle, name: str) -> None:
    after = bundle.folder / "after"
    bundle.config["hooks"] = {name: [hook("exit 3")], "poststop": [hook(f"echo once >> {after}")]}
    done = bundle.sh("sleep 1000").minirt("run", "box")
    assert done.returncode == 1
    assert f"error running {name} hook #0: exit status 3" in done.stderr
    assert after.read_text() == "once\n"
    assert bundle.leftovers() == []


def test_poststop_hooks_that_fail_are_only_warned_of(bundle: Bundle) -> None:
    after = bundle.folder / "after"
    bundle.config["hooks"] = {"poststop": [hook("echo sorry >&2; exit 1"), hook(f"cat > {after}")]}
    done = bundle.sh("true").minirt("run", "box")
    assert done.returncode == 0
    assert "warning: error running poststop hook #0: exit status 1" in done.stderr
    assert "sorry" in done.stderr
    assert after.exists()
    assert bundle.leftovers() == []


def test_poststop_hooks_run_after_any_creation_that_fails(bundle: Bundle) -> None:
    """As runc has it: what the createRuntime hooks did may have to be undone."""
    after = bundle.folder / "after"
    bundle.config["hooks"] = {"poststop": [hook(f"cat > {after}")]}
    bundle.config["process"]["args"] = ["/no/such/program"]
    assert bundle.minirt("create", "box").returncode == 1
    assert json.loads(after.read_text())["status"] == "stopped"
    # What is refused before anything is made has nothing to undo.
    after.unlink()
    bundle.config["process"]["cwd"] = "relative"
    assert bundle.minirt("create", "box").returncode == 1
    assert not after.exists()


def test_a_hook_that_takes_too_long_dies_with_its_children(bundle: Bundle) -> None:
    pids = bundle.folder / "pids"
    script = f"sleep 1000 & echo $! $$ > {pids}; echo waiting; wait"
    bundle.config["hooks"] = {"createRuntime": [hook(script, timeout=1)]}
    before = time.monotonic()
    done = bundle.sh("true").minirt("create", "box")
    assert time.monotonic() - before < 20
    assert done.returncode == 1
    assert "did not end within 1 s, said: waiting" in done.stderr
    for pid in pids.read_text().split():
        wait_until(lambda pid=pid: not Path(f"/proc/{pid}/cwd").exists(), 20, "the hook's processes to have ended")
    assert bundle.leftovers() == []


def test_a_hook_that_never_stops_talking_is_ended_in_time() -> None:
    with pytest.raises(HookError, match="did not end within 1 s"):
        run_hooks(
            "prestart", [Hook("/bin/sh", ("sh", "-c", "while :; do echo $0$0$0$0; done", 1000 * "y"), (), 1)], "{}"
        )


def test_a_hook_can_say_much_and_leave_a_child_behind(tmp_path: Path) -> None:
    """Neither is it told to try again when it writes, nor is what it leaves behind waited for."""
    left = tmp_path / "left"
    script = f"head -c 1000000 /dev/zero | tr '\\0' y || exit 1; sleep 1000 & echo $! > {left}"
    run_hooks("poststart", [Hook("/bin/sh", ("sh", "-c", script), (), 20)], "{}")
    os.kill(int(left.read_text()), signal.SIGKILL)


def test_what_a_hook_says_reaches_the_runtime_whatever_it_is() -> None:
    """Over a channel whose packets have a size, in letters of which each may become six bytes."""
    with pytest.raises(HookError) as caught:
        run_hooks(
            "startContainer",
            [Hook("/bin/sh", ("sh", "-c", "head -c 9000 /dev/zero | tr '\\0' '\\1' >&2; exit 1"))],
            "{}",
        )
    content = describe("run hooks", caught.value)
    assert len(json.dumps(content)) < 8192
    assert isinstance(restore(content), HookError)


def test_a_container_without_a_mount_namespace_has_its_hooks_too(bundle: Bundle) -> None:
    said = bundle.folder / "said"
    bundle.config["linux"] = {
        "namespaces": [{"type": "uts"}, {"type": "ipc"}],
        "cgroupsPath": bundle.config["linux"]["cgroupsPath"],
    }
    bundle.config["mounts"] = []
    bundle.config["hooks"] = {"createContainer": [hook(f"stat -L -c %i /proc/self/ns/uts > {said}")]}
    shown = bundle.run("ls -l /dev/null; pwd")
    assert shown.split()[0] == "crw-rw-rw-"
    assert int(said.read_text()) != identity("self", "uts")[1]
    assert (bundle.rootfs / "dev").is_dir()
