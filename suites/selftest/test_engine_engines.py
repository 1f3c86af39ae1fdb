"""Each engine for real: started, used, stopped; nothing of it stays, and its death is told with its log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import docker
import pytest
from arena_traces import files_of_podman, fresh_run, links, processes, traces

from harness.arena import Arena
from harness.clock import wait_until
from harness.command import Group
from harness.engine import RunningEngine, start_engine
from harness.engine.containerd import CRI, Containerd
from harness.engine.handlers import require_handler
from harness.engine.podman import Podman
from harness.errors import ArenaError, EngineError, MachineError, UsageError
from harness.image.build import write_images
from harness.image.registry import serve
from harness.linux.cgroups import cgroup_of
from harness.model.subject import define, parse_subject

IMAGE = "seatrial/busybox:1"
SAY = ("/bin/sh", "-c", "echo hello; cat /proc/self/cgroup")


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "blobs"
    write_images(folder)
    return folder


@pytest.fixture
def arena() -> Iterator[Arena]:
    run = fresh_run()
    with Arena.open(run, "engine") as opened:
        yield opened
    assert traces(run) == []
    assert "seatrial0" not in links()


def ctr(engine: RunningEngine) -> list[str]:
    return ["ctr", "--address", str(engine.socket), "--namespace", "k8s.io"]


def comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


@pytest.mark.parametrize("name", ["containerd:ctr:runc", "containerd:grpc:crun", "containerd:grpc:minirt"])
def test_containerd_pulls_and_runs(arena: Arena, blobs: Path, name: str) -> None:
    subject = parse_subject(name)
    program = require_handler(subject).program
    with serve(arena, blobs, 5000) as registry, start_engine(subject, arena, str(registry)) as engine:
        assert engine.cgroup == cgroup_of(arena.cgroups.layout, "memory", engine.pids[0])
        assert engine.version
        assert engine.handler == (str(program) if subject.client == "ctr" else subject.handler)
        pull = [*ctr(engine), "images", "pull", "--plain-http", f"{registry}/{IMAGE}"]
        arena.run(pull, timeout_s=60).check()
        run = [*ctr(engine), "run", "--rm", "--runc-binary", str(program)]
        run += ["--cgroup", f"{engine.cgroup_parent}/box", f"{registry}/{IMAGE}", "box", *SAY]
        said = arena.run(run, timeout_s=60).check().text
        assert said.startswith("hello\n")
        assert f"{arena.cgroups.pods}/box" in said
        plugins = arena.run([*ctr(engine), "plugins", "list"], timeout_s=10).check().text
        assert any(line.split()[1:2] == ["cri"] and line.split()[-1] == "ok" for line in plugins.splitlines())
    assert arena.pids("engine") == []


def test_a_client_that_names_no_runtime_has_the_one_below_containerd(arena: Arena, blobs: Path) -> None:
    """``ctr`` of containerd 1.6 creates containers for whatever runtime the shim finds."""
    subject = parse_subject("containerd:ctr:minirt")
    with serve(arena, blobs, 5000) as registry, start_engine(subject, arena, str(registry)) as engine:
        assert engine.handler in ("", str(require_handler(subject).program))
        chosen = ["--runc-binary", engine.handler] if engine.handler else []
        arena.run([*ctr(engine), "images", "pull", "--plain-http", f"{registry}/{IMAGE}"], timeout_s=60).check()
        run = [*ctr(engine), "run", "--detach", *chosen, "--cgroup", f"{engine.cgroup_parent}/box"]
        arena.run([*run, f"{registry}/{IMAGE}", "box", "/bin/sleep", "1000"], timeout_s=60).check()
        program = str(require_handler(subject).program)
        known = arena.run([program, "--root", "/run/containerd/runc/k8s.io", "list", "--quiet"], timeout_s=10)
        assert known.check().text.split() == ["box"]


def test_the_native_tool_of_containerd_pauses_and_resumes(arena: Arena, blobs: Path) -> None:
    subject = parse_subject("containerd:ctr:runc")
    with serve(arena, blobs, 5000) as registry, start_engine(subject, arena, str(registry)) as engine:
        arena.run([*ctr(engine), "images", "pull", "--plain-http", f"{registry}/{IMAGE}"], timeout_s=60).check()
        run = [*ctr(engine), "run", "--detach", "--cgroup", f"{engine.cgroup_parent}/box"]
        arena.run([*run, f"{registry}/{IMAGE}", "box", "/bin/sleep", "1000"], timeout_s=60).check()
        states = []
        for verb in ("pause", "resume"):
            arena.run([*engine.native[verb], "box"], timeout_s=30).check()
            states.append(arena.run([*ctr(engine), "tasks", "list"], timeout_s=30).check().text.split()[-1])
        assert states == ["PAUSED", "RUNNING"]
        assert len(arena.pids("pods")) == 1
        # Left running, and the last time paused: the arena has to end it.
        arena.run([*engine.native["pause"], "box"], timeout_s=30).check()


@pytest.mark.parametrize("name", ["docker:sdk:crun", "docker:sdk:minirt"])
def test_docker_pulls_and_runs_on_a_bridge_of_its_own(arena: Arena, blobs: Path, name: str) -> None:
    subject = parse_subject(name)
    with serve(arena, blobs, 5000) as registry, start_engine(subject, arena, str(registry)) as engine:
        with closing(docker.DockerClient(base_url=f"unix://{engine.socket}", timeout=60)) as client:
            client.images.pull(f"{registry}/{IMAGE}")
            said = client.containers.run(f"{registry}/{IMAGE}", [*SAY], runtime=engine.handler).decode()
            left = client.containers.run(
                f"{registry}/{IMAGE}", ["/bin/sleep", "1000"], runtime=engine.handler, detach=True
            )
            (pid,) = arena.pids("pods")
            assert cgroup_of(arena.cgroups.layout, "memory", pid) == f"{engine.cgroup_parent}/{left.id}"
        assert said.startswith("hello\n")
        assert arena.cgroups.pods in said
        assert engine.cgroup == cgroup_of(arena.cgroups.layout, "memory", engine.pids[0])
        assert "docker0" in arena.run(["ip", "-o", "link"], timeout_s=10).text


@pytest.mark.parametrize("name", ["podman:cli:crun", "podman:cli:runc", "podman:cli:minirt"])
def test_podman_pulls_and_runs_on_a_bridge_of_its_own(arena: Arena, blobs: Path, name: str) -> None:
    """Its own processes are the engine's, conmon too; the runtime asked for has the container; nothing is on the host."""
    subject, before = parse_subject(name), files_of_podman()
    with serve(arena, blobs, 5000) as registry, start_engine(subject, arena, str(registry)) as engine:

        def podman(*words: str) -> str:
            done = arena.run([*engine.command, *words], timeout_s=60, group=Group.ENGINE, env=engine.environment)
            return done.check().text

        podman("pull", "--quiet", f"{registry}/{IMAGE}")
        placed = ["--cgroup-parent", engine.cgroup_parent, "--entrypoint", "[]", f"{registry}/{IMAGE}"]
        said = podman("run", "--rm", *placed, *SAY)
        assert said.startswith("hello\n")
        assert arena.cgroups.pods in said
        box = podman("run", "--detach", *placed, "/bin/sleep", "1000").strip()
        program = str(require_handler(subject).program)
        assert arena.run([program, "list", "--quiet"], timeout_s=10).check().text.split() == [box]
        (pid,) = arena.pids("pods")
        assert cgroup_of(arena.cgroups.layout, "memory", pid).startswith(f"{engine.cgroup_parent}/libpod-{box}")
        # podman returns with the container's start, and may still be seen to end.
        wait_until(lambda: [comm(it) for it in arena.pids("engine")] == ["conmon"], 10, "conmon to be alone")
        assert "10.88.0.1/" in arena.run(["ip", "-o", "-4", "addr"], timeout_s=10).text
    assert arena.pids("engine") == []
    assert files_of_podman() == before
    assert [folder for folder in ("crun", "runc", "minirt/oci") if Path("/run", folder, box).exists()] == []


def test_the_service_of_podman_is_a_daemon_in_the_arena(arena: Arena, blobs: Path) -> None:
    subject = parse_subject("podman:sdk:crun")
    with serve(arena, blobs, 5000) as registry, start_engine(subject, arena, str(registry)) as engine:
        assert engine.cgroup == cgroup_of(arena.cgroups.layout, "memory", engine.pids[0])
        with closing(docker.DockerClient(base_url=f"unix://{engine.socket}", timeout=60)) as client:
            client.images.pull(f"{registry}/{IMAGE}")
            client.containers.run(
                f"{registry}/{IMAGE}", ["/bin/sleep", "1000"], detach=True, cgroup_parent=engine.cgroup_parent
            )
            assert len(arena.pids("pods")) == 1
            assert sorted(set(map(comm, arena.pids("engine")))) == ["conmon", "podman"]
    assert arena.pids("engine") == []


def test_podman_as_it_is_configured(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that cannot be raised here are asked for lower; the runtime's errors are asked for in JSON."""
    subject = parse_subject("podman:cli:minirt")
    podman, handler = Podman(subject, arena, "127.0.0.1:5000"), require_handler(subject)
    for can, wanted in ((True, None), (False, ["nofile=1024:1024", "nproc=1024:1024"])):
        monkeypatch.setattr("harness.linux.capabilities.has", lambda name, can=can: can)
        config = podman.config(handler)
        assert config["containers"].get("default_ulimits") == wanted
    assert config["engine"]["lock_type"] == "file"
    assert "minirt" in config["engine"]["runtime_supports_json"]
    for there in (True, False):
        # netavark wants nft by itself, and does without it where it is told to.
        monkeypatch.setattr(
            "harness.engine.podman.find_program", lambda name, there=there: Path(name) if there else None
        )
        assert podman.environment(handler).get("NETAVARK_FW") == (None if there else "iptables")
    monkeypatch.undo()
    words = podman.argv(handler)
    assert f"--runtime={handler.program}" in words
    assert f"--root={arena.root}/podman" in words


def test_minirt_answers_and_leaves_nothing(arena: Arena, blobs: Path) -> None:
    subject = parse_subject("minirt:grpc")
    with serve(arena, blobs, 5000) as registry, start_engine(subject, arena, str(registry)) as engine:
        assert engine.socket is not None
        assert engine.socket.is_socket()
        assert engine.cgroup == cgroup_of(arena.cgroups.layout, "memory", engine.pids[0])
        assert engine.pids[0] in arena.pids("engine")
    assert arena.pids("engine") == []


def test_without_an_engine_there_is_only_the_runtime(arena: Arena) -> None:
    with start_engine(parse_subject("oci:crun"), arena, "127.0.0.1:5000") as engine:
        assert (engine.socket, engine.pids) == (None, ())
        assert arena.run([engine.handler, "--version"], timeout_s=10).check().text.startswith("crun")
        # crun refuses a hybrid layout; the arena hides it.
        listed = arena.run([engine.handler, "--root", str(arena.state / "crun"), "list"], timeout_s=10)
        assert listed.status == 0


def test_an_engine_that_runs_already_is_found_by_its_socket(arena: Arena) -> None:
    with start_engine(parse_subject("containerd:grpc:runc"), arena, "127.0.0.1:5000") as own:
        other = define("far", f"cri:unix://{own.socket}")
        run = fresh_run()
        with Arena.open(run, "far", attach=True) as here, start_engine(other, here, "127.0.0.1:5000") as engine:
            assert engine.pids == own.pids
            assert engine.cgroup == own.cgroup
            assert engine.cgroup_parent == ""
            assert (engine.name, engine.version, engine.handler) == ("containerd", own.version, "")
            assert engine.native == own.native
        # What `--attach` makes of a subject: it names an engine, but that one must not be started.
        named = replace(parse_subject("containerd:grpc:runc"), socket=str(own.socket))
        with Arena.open(run, "far", attach=True) as here, start_engine(named, here, "127.0.0.1:5000") as engine:
            assert (engine.pids, engine.handler) == (own.pids, "runc")
        assert traces(run) == []
        assert processes(arena.run_id)


def test_a_private_engine_does_not_start_in_the_hosts_namespaces() -> None:
    run = fresh_run()
    with (
        Arena.open(run, "far", attach=True) as here,
        pytest.raises(ArenaError, match="does not belong"),
        start_engine(parse_subject("containerd:grpc:runc"), here, ""),
    ):
        pass
    assert traces(run) == []


def test_an_engine_that_nobody_started(arena: Arena, tmp_path: Path) -> None:
    with (
        pytest.raises(EngineError, match="No such file"),
        start_engine(define("far", f"cri:unix://{tmp_path}/none.sock"), arena, ""),
    ):
        pass


@pytest.mark.parametrize("name", ["containerd:grpc:runc", "docker:sdk:runc", "podman:cli:crun", "minirt:grpc"])
def test_an_engine_that_dies_at_its_start_shows_its_log(arena: Arena, name: str) -> None:
    subject = replace(parse_subject(name), options=MappingProxyType({"args": "--no-such-option=1"}))
    with pytest.raises(EngineError) as caught, start_engine(subject, arena, "127.0.0.1:5000"):
        pass
    assert "died while it started" in str(caught.value)
    assert "no-such-option" in caught.value.log_tail
    assert "no-such-option" in str(caught.value)
    assert arena.pids("engine") == []


def test_an_option_that_no_engine_has(arena: Arena) -> None:
    subject = replace(parse_subject("containerd:grpc:runc"), options=MappingProxyType({"speed": "high"}))
    with (
        pytest.raises(UsageError, match="no option 'speed'; it has: args, log_level, snapshotter"),
        start_engine(subject, arena, ""),
    ):
        pass


def test_a_runtime_of_ones_own_is_configured_by_path(arena: Arena, tmp_path: Path) -> None:
    program = tmp_path / "my-runtime"
    program.write_text('#!/bin/sh\nexec runc "$@"\n')
    program.chmod(0o755)
    subject = define("third", f"containerd:grpc:{program}")
    config = Containerd(subject, arena, "127.0.0.1:5000").config(require_handler(subject))["plugins"][CRI]["containerd"]
    assert config["default_runtime_name"] == "own"
    assert config["runtimes"]["own"]["options"]["BinaryName"] == str(program)
    assert {"runc", "crun"} <= set(config["runtimes"])
    program.unlink()
    with pytest.raises(MachineError, match="not a program"):
        require_handler(subject)


def test_the_shims_sockets_are_in_the_arenas_own_run(arena: Arena, blobs: Path) -> None:
    subject = parse_subject("containerd:ctr:runc")
    with serve(arena, blobs, 5000) as registry, start_engine(subject, arena, str(registry)) as engine:
        arena.run([*ctr(engine), "images", "pull", "--plain-http", f"{registry}/{IMAGE}"], timeout_s=60).check()
        box = [f"{registry}/{IMAGE}", "box", "/bin/sleep", "1000"]
        arena.run(
            [*ctr(engine), "run", "--detach", "--cgroup", f"{engine.cgroup_parent}/box", *box], timeout_s=60
        ).check()
        inside = arena.run(["find", "/run/containerd", "-type", "s"], timeout_s=10).text.split()
    assert inside
    assert [path for path in inside if Path(path).exists()] == []
