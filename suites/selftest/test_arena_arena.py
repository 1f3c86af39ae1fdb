"""The arena: what runs inside is apart from the host, and nothing of it stays."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from arena_traces import fresh_run, links, processes, traces

from harness.arena import Arena, ArenaCgroups
from harness.arena.arena import arena_name
from harness.arena.cgroups import bases
from harness.clock import wait_until
from harness.command import Group
from harness.errors import ArenaError, CommandError, CommandTimeout, MachineError, UsageError
from harness.keeper import ladder, runs
from harness.linux.cgroups import Layout, Mode, cgroup_of, path_of, read_layout


@pytest.fixture
def run_id() -> Iterator[str]:
    run = fresh_run()
    yield run
    assert traces(run) == []


@pytest.fixture
def arena(run_id: str) -> Iterator[Arena]:
    with Arena.open(run_id, "one") as opened:
        yield opened


def test_output_status_and_input_of_a_command(arena: Arena) -> None:
    done = arena.run(["sh", "-c", "cat; echo word >&2; exit 7"], timeout_s=10, input=b"x" * 300_000)
    assert (done.status, len(done.stdout), done.stderr) == (7, 300_000, b"word\n")
    with pytest.raises(CommandError, match="exit 7"):
        done.check()


@pytest.mark.parametrize("group", [Group.ENGINE, Group.CLIENT])
def test_what_is_written_where_one_is_goes_with_the_arena(arena: Arena, group: Group) -> None:
    """A conmon leaves a file "oom" where it was started, and was started where the user is."""
    assert arena.run(["readlink", "/proc/self/cwd"], timeout_s=10, group=group).text == f"{arena.root}\n"


def test_a_command_that_does_not_read_its_input(arena: Arena) -> None:
    assert arena.run(["true"], timeout_s=10, input=b"x" * 300_000).status == 0


def test_death_by_signal_is_a_negative_status(arena: Arena) -> None:
    assert arena.run(["sh", "-c", "kill -SEGV $$"], timeout_s=10).status == -signal.SIGSEGV


def test_the_environment_is_replaced(arena: Arena) -> None:
    assert arena.run(["/usr/bin/env"], timeout_s=10, env={"A": "1"}).stdout == b"A=1\n"


def test_signals_that_python_ignores_are_default_in_a_child(arena: Arena) -> None:
    ignored = arena.run(["sh", "-c", "grep SigIgn /proc/self/status"], timeout_s=10).text.split()[1]
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD):
        assert not int(ignored, 16) & 1 << number - 1


def test_a_child_inherits_three_descriptors(arena: Arena, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        one = arena.start(["sleep", "1000"], stdout_fd=log.fileno(), stderr_fd=log.fileno())

    def descriptors() -> list[str]:
        return sorted(fd.name for fd in Path(f"/proc/{one.pid}/fd").iterdir())

    # The dynamic loader has libraries open for a moment; what was inherited stays.
    wait_until(lambda: descriptors() == ["0", "1", "2"], 5, "a child with three descriptors")
    listed = arena.run(["ls", "/proc/self/fd"], timeout_s=10).text.split()
    assert listed == ["0", "1", "2", "3"]  # 3 is the folder that ls reads


def test_output_into_given_descriptors(arena: Arena, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        done = arena.run(["sh", "-c", "echo out; echo err >&2"], timeout_s=10, stdout_fd=out.fileno())
    assert (done.stdout, done.stderr, (tmp_path / "out").read_bytes()) == (b"", b"err\n", b"out\n")


def test_a_daemon_that_keeps_the_pipes_open_is_not_waited_for(arena: Arena) -> None:
    done = arena.run(["sh", "-c", "sleep 1000 & echo done"], timeout_s=20)
    assert done.stdout == b"done\n"


def test_a_missing_program(arena: Arena) -> None:
    with pytest.raises(MachineError, match="no program no-such-program"):
        arena.run(["no-such-program"], timeout_s=1)


@pytest.mark.parametrize("group", [Group.CLIENT, Group.HARNESS])
def test_a_word_that_no_command_can_have(arena: Arena, group: Group) -> None:
    """A NUL ends it for the kernel. The arena goes on."""
    with pytest.raises(MachineError, match="Invalid argument"):
        arena.run(["echo", "a\0b"], timeout_s=10, group=group)
    assert arena.run(["echo", "ab"], timeout_s=10, group=group).text == "ab\n"


@pytest.mark.parametrize("group", [Group.ENGINE, Group.CLIENT])
def test_a_program_that_cannot_be_executed(arena: Arena, tmp_path: Path, group: Group) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF, but no more of it")
    broken.chmod(0o755)
    with pytest.raises(MachineError, match="Exec format error"):
        arena.run([str(broken)], timeout_s=5, group=group)
    with (tmp_path / "log").open("wb") as log, pytest.raises(MachineError, match="Exec format error"):
        arena.start([str(broken)], stdout_fd=log.fileno(), stderr_fd=log.fileno(), group=group)


def test_a_timeout_kills_the_whole_group_and_keeps_stderr(arena: Arena) -> None:
    with pytest.raises(CommandTimeout) as caught:
        arena.run(["sh", "-c", "echo so far >&2; sleep 1000 & sleep 1000"], timeout_s=0.2)
    assert caught.value.stderr == "so far\n"
    wait_until(lambda: arena.pids("client") == [], 10, "the group to be gone")


def test_commands_from_several_threads(arena: Arena) -> None:
    said: dict[int, str] = {}

    def ask(number: int) -> None:
        for turn in range(5):
            said[number * 10 + turn] = arena.run(["echo", str(number * 10 + turn)], timeout_s=30).text.strip()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {number: str(number) for number in said}
    assert len(said) == 30


@pytest.mark.parametrize("group", list(Group))
def test_a_process_is_accounted_to_its_group(arena: Arena, group: Group, tmp_path: Path) -> None:
    expected = f"{arena.cgroups.name}/{group}"
    ran = arena.run(["cat", "/proc/self/cgroup"], timeout_s=10, group=group).text
    assert expected in ran
    with (tmp_path / "log").open("wb") as log:
        process = arena.start(["sleep", "1000"], group=group, stdout_fd=log.fileno(), stderr_fd=log.fileno())
    for controller in ("cpuacct", "memory"):
        assert cgroup_of(arena.cgroups.layout, controller, process.pid) == expected
    assert arena.pids(group) == [process.pid]
    assert process.poll() is None
    assert process.stop() == -signal.SIGTERM
    assert process.stop() == process.poll() == -signal.SIGTERM
    assert arena.pids(group) == []


def test_a_process_that_ignores_sigterm_is_killed(arena: Arena, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        words = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1000; done"]
        process = arena.start(words, stdout_fd=log.fileno(), stderr_fd=log.fileno())
    wait_until(lambda: (tmp_path / "log").read_text() == "ready\n", 10, "the trap")
    with pytest.raises(CommandTimeout):
        process.wait(0.01)
    assert process.stop(grace_s=0.05) == -signal.SIGKILL


def test_the_network_is_the_arenas_own(arena: Arena) -> None:
    before = links()
    addresses = arena.run(["cat", "/proc/net/fib_trie"], timeout_s=10).text
    assert "127.0.0.1" in addresses
    arena.run(["ip", "link", "add", "seatrial-dummy", "type", "bridge"], timeout_s=10).check()
    assert links() == before
    assert arena.netns.stat().st_ino != Path("/proc/self/ns/net").stat().st_ino


def test_run_is_private_but_for_the_arenas_state(arena: Arena) -> None:
    arena.run(["mkdir", "/run/seatrial-was-here"], timeout_s=10).check()
    assert not Path("/run/seatrial-was-here").exists()
    arena.run(["touch", str(arena.state / "seen")], timeout_s=10).check()
    assert (arena.state / "seen").exists()


def test_mounts_stay_inside(arena: Arena) -> None:
    (arena.root / "mnt").mkdir()
    arena.run(["mount", "-t", "tmpfs", "inside", str(arena.root / "mnt")], timeout_s=10).check()
    assert str(arena.root / "mnt") in {mount.target for mount in arena.mounts()}
    assert not os.path.ismount(arena.root / "mnt")


def test_a_hybrid_layout_is_hidden(arena: Arena) -> None:
    kinds = {mount.fstype for mount in arena.mounts() if mount.target.startswith("/sys/fs/cgroup")}
    assert not {"cgroup", "cgroup2"} <= kinds


def test_groups_of_a_pure_v2_layout(run_id: str) -> None:
    mounted = read_layout()
    assert mounted.unified is not None, "every kernel in use has a v2 tree"
    layout = Layout(Mode.V2, {"hugetlb": mounted.unified}, mounted.unified, mounted.own, mounted.roots)
    groups = ArenaCgroups(layout, f"/seatrial/{run_id}/one", (str(mounted.unified),))
    groups.make()
    try:
        (engine,) = groups.folders("engine")
        assert engine == f"{mounted.unified}/seatrial/{run_id}/one/engine"
        offered = Path(engine, "cgroup.controllers").read_text()
        assert offered == (mounted.unified / "cgroup.controllers").read_text()
        # A group that is to hold processes hands no controller down; the parent of containers does.
        assert Path(engine, "cgroup.subtree_control").read_text().strip() == ""
        assert (Path(engine).parent / "pods" / "cgroup.subtree_control").read_text() == offered
    finally:
        assert ladder.remove_cgroups(f"{mounted.unified}/seatrial/{run_id}") == []
        runs.sweep(run_id, bases())


def freeze(arena: Arena, pid: int) -> None:
    """Put a process into a container's cgroup, as a runtime does, and freeze that."""
    box = path_of(arena.cgroups.layout, "freezer", arena.cgroups.pods) / "box"
    box.mkdir()
    (box / "cgroup.procs").write_text(str(pid))
    v2 = arena.cgroups.layout.is_v2("freezer")
    (box / ("cgroup.freeze" if v2 else "freezer.state")).write_text("1" if v2 else "FROZEN")


def test_containers_left_are_killed_frozen_or_not(arena: Arena, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        process = arena.start(["sleep", "1000"], stdout_fd=log.fileno(), stderr_fd=log.fileno())
    freeze(arena, process.pid)
    arena.end_pods()
    assert process.wait(10) == -signal.SIGKILL


def test_an_attached_arena_is_in_the_hosts_namespaces(run_id: str) -> None:
    with Arena.open(run_id, "one", attach=True) as arena:
        assert arena.netns.stat().st_ino == Path("/proc/self/ns/net").stat().st_ino
        assert arena.mntns.stat().st_ino == Path("/proc/self/ns/mnt").stat().st_ino
        assert arena.cgroups.client in arena.run(["cat", "/proc/self/cgroup"], timeout_s=10).text


def test_two_arenas_of_a_run_and_a_name_that_is_taken(run_id: str) -> None:
    with Arena.open(run_id, "one") as one, Arena.open(run_id, "two") as two:
        assert one.netns.stat().st_ino != two.netns.stat().st_ino
        with pytest.raises(ArenaError, match="has an arena one already"):
            Arena.open(run_id, "one")
        assert one.run(["true"], timeout_s=10).status == 0


@pytest.mark.parametrize("name", ["", "../up", "a/b", "A B"])
def test_names_that_are_no_path_component(name: str) -> None:
    with pytest.raises(UsageError):
        Arena.open(name or "run", name)


def test_long_names_stay_apart_and_short() -> None:
    one, two = arena_name("x" * 90 + "1"), arena_name("x" * 90 + "2")
    assert one != two
    assert len(one) <= 32
    assert arena_name("containerd-grpc-runc") == "containerd-grpc-runc"


def test_processes_that_hide_and_ignore_are_gone_after_the_close(run_id: str) -> None:
    with Arena.open(run_id, "one") as arena:
        script = "setsid sh -c 'trap \"\" TERM; sleep 1000; sleep 1000' & setsid sleep 1000 &"
        arena.run(["sh", "-c", script], timeout_s=10)
        wait_until(lambda: len(arena.pids("client")) >= 3, 10, "the processes")
    assert processes(run_id) == []


def test_a_frozen_process_is_gone_after_the_close(run_id: str, tmp_path: Path) -> None:
    with Arena.open(run_id, "one") as arena, (tmp_path / "log").open("wb") as log:
        process = arena.start(["sleep", "1000"], stdout_fd=log.fileno(), stderr_fd=log.fileno())
        freeze(arena, process.pid)
    assert processes(run_id) == []


def test_a_killed_keeper_is_an_error_and_leaves_nothing(run_id: str, tmp_path: Path) -> None:
    arena = Arena.open(run_id, "one")
    with (tmp_path / "log").open("wb") as log:
        process = arena.start(["sleep", "1000"], stdout_fd=log.fileno(), stderr_fd=log.fileno())
    arena.run(["true"], timeout_s=10)
    os.kill(arena.keeper_pid, signal.SIGKILL)
    with pytest.raises(ArenaError, match="keeper died"):
        process.wait(10)
    with pytest.raises(ArenaError):
        arena.run(["true"], timeout_s=10, group=Group.ENGINE)
    arena.close()
    arena.close()


def test_an_interrupt_in_the_middle_of_the_close(run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena.open(run_id, "one")

    def interrupted(source: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("harness.keeper.wire.receive", interrupted)
        arena.close()
    assert not runs.is_alive(run_id)


def test_the_first_error_goes_out(run_id: str) -> None:
    with pytest.raises(ZeroDivisionError), Arena.open(run_id, "one") as arena:
        os.kill(arena.keeper_pid, signal.SIGKILL)
        raise ZeroDivisionError


def test_nothing_is_left_where_the_namespaces_cannot_be_made(run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.keeper.runs.make_mount_points", lambda paths: None)
    with pytest.raises(ArenaError, match="no-such-place"):
        Arena.open(run_id, "one", covers={"/proc/self/no-such-place": "x"})
