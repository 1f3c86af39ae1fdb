"""checkpoint and restore: what is asked of criu, and (where criu can do it) a counter that goes on counting."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from minirt_bundle import Bundle, open_bundle

from harness.clock import wait_until
from harness.minirt.errors import MinirtError, UsageError
from harness.minirt.oci import checkpointing, criu
from harness.minirt.oci.arguments import parse_options
from harness.minirt.oci.verbs import find_verb

COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"


def _criu_works() -> str:
    """Empty where it does, else why not."""
    program = shutil.which("criu", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        return "criu is not installed"
    done = subprocess.run([program, "check"], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    said = (done.stderr + done.stdout).strip().splitlines() or ["it does not say why"]
    return "" if done.returncode == 0 else f"criu cannot do it on this kernel: {said[0]}"


@pytest.fixture(scope="module")
def broken() -> str:
    return _criu_works()


@pytest.fixture
def works(broken: str) -> None:
    if broken:
        pytest.skip(broken)


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    with open_bundle(tmp_path) as bundle:
        # criu has to make a folder in the root.
        bundle.config["root"]["readonly"] = False
        yield bundle.sh(COUNT)


def numbers(bundle: Bundle) -> list[int]:
    return [int(line) for line in bundle.output().split()]


def begin(bundle: Bundle) -> Bundle:
    with (bundle.folder / "out").open("a") as out:
        bundle.ok("run", "--detach", "box", stdout=out, stderr=out, capture_output=False)
    bundle.await_output("5\n")
    return bundle


def go_on(bundle: Bundle, *words: str) -> None:
    with (bundle.folder / "out").open("a") as out:
        bundle.ok("restore", "--detach", *words, "box", stdout=out, capture_output=False)


@pytest.mark.usefixtures("works")
def test_a_counter_goes_on_counting(bundle: Bundle) -> None:
    begin(bundle).ok("checkpoint", "--image-path", "images", "--work-path", "work", "box")
    assert bundle.leftovers() == []
    before = numbers(bundle)[-1]
    assert (bundle.folder / "work/dump.log").exists()
    assert (bundle.folder / "images/inventory.img").exists()
    go_on(bundle, "--image-path", "images", "--work-path", "work", "--pid-file", "pid")
    state = bundle.state()
    assert (state["status"], str(state["pid"])) == ("running", (bundle.folder / "pid").read_text())
    wait_until(lambda: numbers(bundle)[-1] > before + 3, 20, "the counter to go on")
    assert numbers(bundle) == list(range(1, len(numbers(bundle)) + 1))
    # It is a container like any other.
    assert bundle.ok("exec", "box", "/bin/echo", "hello") == "hello\n"
    bundle.ok("pause", "box")
    bundle.ok("resume", "box")
    bundle.ok("delete", "--force", "box")
    assert bundle.leftovers() == []


@pytest.mark.usefixtures("works")
def test_left_running_and_after_a_pre_dump(bundle: Bundle) -> None:
    """Only what has changed since a pre-dump is written again, where the kernel tells it."""
    parent: tuple[str, ...] = ("--parent-path", "../first")
    done = begin(bundle).minirt("checkpoint", "--pre-dump", "--image-path", "first", "box")
    assert bundle.state()["status"] == "running"
    if done.returncode:
        assert "Tracking memory is not available" in done.stderr
        parent = ()
    bundle.ok("checkpoint", "--leave-running", *parent, "--image-path", "second", "box")
    assert bundle.state()["status"] == "running"
    assert (bundle.folder / "second/parent").is_symlink() == bool(parent)
    before = numbers(bundle)[-1]
    wait_until(lambda: numbers(bundle)[-1] > before, 20, "the counter to go on")


@pytest.mark.usefixtures("works")
def test_foreground_ends_with_the_status_of_the_restored(bundle: Bundle) -> None:
    bundle.sh("trap 'exit 7' TERM; echo 5; while :; do sleep 0.05; done")
    begin(bundle).ok("checkpoint", "box")
    bundle.write()
    argv = [*bundle.program, "--root", str(bundle.states), "restore", "box"]
    with (
        (bundle.folder / "out").open("a") as out,
        subprocess.Popen(argv, cwd=bundle.folder, stdin=subprocess.DEVNULL, stdout=out) as child,
    ):
        wait_until(lambda: _runs(bundle), 20, "the container")
        bundle.ok("kill", "box", "TERM")
        assert child.wait(20) == 7
    assert bundle.leftovers() == []


def _runs(bundle: Bundle) -> bool:
    done = bundle.minirt("state", "box")
    return done.returncode == 0 and json.loads(done.stdout)["status"] == "running"


@pytest.mark.usefixtures("works")
def test_terminal_is_handed_over(bundle: Bundle) -> None:
    bundle.config["process"]["terminal"] = True
    bundle.sh("echo up; while read line; do echo got $line; done")
    path = str(bundle.folder / "console")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        bundle.ok("run", "--detach", "--console-socket", path, "box")
        master = _receive(listener)
        wait_until(lambda: b"up" in os.read(master, 100), 20, "the terminal")
        bundle.ok("checkpoint", "box")
        os.close(master)
        bundle.ok("restore", "--detach", "--console-socket", path, "box")
        master = _receive(listener)
        os.write(master, b"hello\n")
        said = b""
        while b"got hello" not in said:
            said += os.read(master, 100)
        os.close(master)


def _receive(listener: socket.socket) -> int:
    end, _ = listener.accept()
    with end:
        _, fds, _, _ = socket.recv_fds(end, 100, 1)
    return fds[0]


@pytest.mark.usefixtures("works")
def test_what_criu_cannot_do_is_said_in_its_words_and_leaves_nothing(bundle: Bundle) -> None:
    bundle.config["root"]["readonly"] = True
    begin(bundle).ok("checkpoint", "box")
    done = bundle.minirt("restore", "--detach", "box")
    assert done.returncode == 1
    assert "criu cannot restore the container: " in done.stderr
    assert "checkpoint/restore.log)" in done.stderr
    assert bundle.leftovers() == []


def test_criu_that_does_not_work_is_told_and_the_container_lives_on(bundle: Bundle, broken: str) -> None:
    """On a kernel that is too new for criu, and with a program in its place that fails: its own words are what is said."""
    env = dict(os.environ)
    if not broken or "not installed" in broken:
        bin = bundle.folder / "programs"
        bin.mkdir()
        (bin / "criu").write_text("#!/bin/sh\necho 'Error (criu/x.c:1): Nothing works here' >&2\nexit 1\n")
        (bin / "criu").chmod(0o755)
        env["PATH"] = f"{bin}:{env['PATH']}"
    begin(bundle)
    done = bundle.minirt("checkpoint", "box", env=env)
    assert done.returncode == 1
    assert "minirt: criu cannot dump the container: " in done.stderr
    assert bundle.state()["status"] == "running"


def test_without_criu(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(MinirtError, match="criu, which is not installed"):
        criu.ask(criu.DUMP, lambda _: [], prepare=lambda: None, notified=lambda *_: None, descriptors=[], log="")


@pytest.mark.parametrize("state", ["created", "stopped"])
def test_only_what_runs_can_be_checkpointed(bundle: Bundle, state: str) -> None:
    bundle.create()
    if state == "stopped":
        bundle.ok("kill", "box", "KILL")
        bundle.await_status("stopped")
    done = bundle.minirt("checkpoint", "box")
    assert (done.returncode, done.stderr) == (1, f"minirt: Container cannot be checkpointed in {state} state\n")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--parent-path", "/x"), "--parent-path must be relative"),
        (("--parent-path", "none"), "invalid --parent-path"),
        (("--manage-cgroups-mode", "x"), "invalid manage-cgroups-mode value"),
        (("--empty-ns", "pid"), 'namespace "pid" is not supported'),
        (("--page-server", "x"), "Use --page-server ADDRESS:PORT to specify page server"),
        (("--page-server", "x:y"), "Invalid port number"),
        (("--lazy-pages", "--status-fd", "77"), "invalid --status-fd argument 77: bad file descriptor"),
        (("--lazy-pages", "--status-fd", "x"), "invalid --status-fd argument x: is not a number"),
    ],
)
def test_options_are_checked_before_anything_is_done(bundle: Bundle, words: tuple[str, ...], reason: str) -> None:
    begin(bundle)
    done = bundle.minirt("checkpoint", *words, "box")
    assert done.returncode == 1
    assert reason in done.stderr
    assert bundle.state()["status"] == "running"


def test_restore_checks_its_options_before_anything_is_made(bundle: Bundle) -> None:
    for words, reason in (
        (("--image-path", "none"), "none: is not a folder"),
        (("--image-path", ".", "--console-socket", "x"), "cannot use console socket"),
        (("--image-path", ".", "--manage-cgroups-mode", "x"), "invalid manage-cgroups-mode value"),
    ):
        done = bundle.minirt("restore", "--detach", *words, "box")
        assert done.returncode == 1
        assert reason in done.stderr
        assert not (bundle.states / "box").exists()


def test_every_option_is_criu_s(tmp_path: Path) -> None:
    """Fields of criu_opts in rpc.proto, by their numbers."""
    words = ["--leave-running", "--tcp-established", "--ext-unix-sk", "--shell-job", "--file-locks", "--link-remap"]
    words += ["--tcp-skip-in-flight", "--auto-dedup", "--lazy-pages", "--manage-cgroups-mode", "strict"]
    words += ["--page-server", "[::1]:77"]
    parsed = parse_options(words, find_verb("checkpoint").options)
    config = tmp_path / "criu.conf"
    config.touch()
    options = checkpointing.common_options(parsed, [8, 9], "/root", "dump.log", {"org.criu.config": str(config)})
    assert dict(options) == {
        1: 8,
        17: 9,
        9: 4,
        10: "dump.log",
        12: True,
        13: "/root",
        24: True,
        34: 5,
        38: 0x40000000,
        50: True,
        **dict.fromkeys((3, 4, 5, 7, 8, 16, 18, 46, 48), True),
        51: str(config),
    }
    assert checkpointing.page_server(parsed) == [(11, [(1, "::1"), (2, 77)])]
    none = parse_options([], find_verb("checkpoint").options)
    assert 51 not in dict(checkpointing.common_options(none, [8, 9], "/", "x", {"org.criu.config": ""}))
    with pytest.raises(UsageError):
        checkpointing.page_server(parse_options(["--page-server", ":5"], find_verb("checkpoint").options))


@pytest.mark.parametrize(
    ("fields", "encoded"),
    [
        ([(1, 150)], b"\x08\x96\x01"),
        ([(2, "testing")], b"\x12\x07testing"),
        ([(3, [(1, 150)])], b"\x1a\x03\x08\x96\x01"),
        ([(26, True), (26, False)], b"\xd0\x01\x01\xd0\x01\x00"),
        ([(2, -1)], b"\x10" + b"\xff" * 9 + b"\x01"),
    ],
)
def test_protocol_buffers(fields: list[tuple[int, criu.Value]], encoded: bytes) -> None:
    """The examples of https://protobuf.dev/programming-guides/encoding/."""
    assert criu.encode(fields) == encoded
    number, value = fields[-1]
    found = criu.decode(encoded)[number]
    if isinstance(value, int):
        assert found == value & (1 << 64) - 1
    else:
        assert found == (value.encode() if isinstance(value, str) else criu.encode(value))  # type: ignore[arg-type]


@pytest.mark.parametrize("message", [b"\x08", b"\x12\x07test", b"\x0d\0\0\0\0"])
def test_what_is_no_message(message: bytes) -> None:
    with pytest.raises(ValueError, match=r"message ends|kind"):
        criu.decode(message)


def test_streams_are_noted(bundle: Bundle, tmp_path: Path) -> None:
    """What runc's restore reads: the targets of descriptors 0 to 2."""
    begin(bundle)
    bundle.minirt("checkpoint", "--leave-running", "--image-path", "images", "box")
    path = bundle.folder / "images/descriptors.json"
    streams = json.loads(path.read_text())
    assert streams[1:] == [str(bundle.folder / "out")] * 2
