"""How ``minirt serve`` is started: words, files, locks, sockets, and what it says when it cannot."""

from __future__ import annotations

import configparser
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import grpc
import pytest
from cri_api.v1 import api_pb2 as api
from minirt_daemon import Daemon, running

from harness.clock import wait_until
from harness.linux import syscalls
from harness.minirt.cri.options import Options, parse_options, read_config, render_help
from harness.minirt.errors import UsageError
from harness.paths import fixtures


def minirt(*words: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    argv = [*prefix, sys.executable, "-m", "harness.minirt", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


# -- words -----------------------------------------------------------------------------------------------------------------


def test_every_option_can_be_given_in_all_three_ways(tmp_path: Path) -> None:
    other = {
        "listen": "unix:///a/b.sock",
        "root": "/a/root",
        "state": "/a/state",
        "cni_conf_dir": "/a/net.d",
        "cni_bin_dir": "/a/bin:/b/bin",
        "cdi_dirs": "/a/cdi:/b/cdi",
        "hosts_dir": "/a/hosts",
        "registry_config": "/a/config.json",
        "pause_image": "registry/pause:1",
        "cgroup_parent": "/a/pods",
        "streaming_address": "127.0.0.1:1234",
        "log_level": "debug",
    }
    assert set(other) == {option.name for option in fields(Options)}
    separate = [word for name, value in other.items() for word in (f"--{name.replace('_', '-')}", value)]
    joined = [f"--{name.replace('_', '-')}={value}" for name, value in other.items()]
    file = tmp_path / "config.toml"
    file.write_text("".join(f'{name} = "{value}"\n' for name, value in other.items()))
    dashes = tmp_path / "dashes.toml"
    dashes.write_text("".join(f"{name.replace('_', '-')} = '{value}'\n" for name, value in other.items()))
    for words in (separate, joined, ["--config", str(file)], [f"--config={dashes}"]):
        assert asdict(parse_options(words)) == other
    assert parse_options(["--config", str(file), "--root", "/wins"]).root == "/wins"
    assert parse_options(["--root", "/wins", "--config", str(file)]).root == "/wins"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rooot = '/a'", ["rooot", "no such option", "cni_bin_dir"]),
        ("root = 5", ["root", "string", "FOLDER", "5"]),
        ("cni_bin_dir = ['/a']", ["cni_bin_dir", "string"]),
        ("[root]\npath = '/a'", ["root", "string"]),
        ("root = '/a'\nroot = '/b'", ["root"]),
        ("cni_bin_dir = '/a'\ncni-bin-dir = '/b'", ["cni-bin-dir", "twice"]),
        ("log_level = 'loud'", ["--log-level", "loud", "debug, info, warning, error"]),
        ("listen = 'tcp://127.0.0.1:1'", ["--listen", "unix:///"]),
        ("root = ", ["Invalid value"]),
        ("root = 'a/b'", ["--root", "absolute"]),
        ("state = '/var/lib/minirt/'", ["--root", "--state"]),
        ("cgroup_parent = '/a/../b'", ["--cgroup-parent"]),
        ("cgroup_parent = '/'", ["--cgroup-parent"]),
        ("streaming_address = 'everywhere'", ["--streaming-address"]),
        (f"listen = 'unix:///{'a' * 120}'", ["--listen", "107"]),
        ("root = '/a\\u0000'".replace("'", '"'), ["--root"]),
    ],
)
def test_a_file_that_is_wrong_is_named_with_the_key_and_what_is_allowed(
    text: str, words: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as error:
        read_config(file)
    for word in (str(file), *words):
        assert word in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml: No such file"):
        read_config(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"binary\.toml"):
        read_config(tmp_path / "binary.toml")


def test_wrong_words_are_told_with_the_right_ones() -> None:
    for words in (["--colour", "blue"], ["--root"], ["here"], ["--config", "/no/such.toml"]):
        done = minirt("serve", *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert words[0] in done.stderr or "such.toml" in done.stderr
        assert "--help" in done.stderr
        assert "Traceback" not in done.stderr


def test_help_tells_every_option_and_its_default() -> None:
    for command in ("serve", "shutdown"):
        done = minirt(command, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        for option in fields(Options):
            assert f"--{option.name.replace('_', '-')} {option.metadata['value']}" in done.stdout
            assert option.default in done.stdout
    assert "SIGTERM" in render_help("serve", "SIGTERM")


# -- files that ship ---------------------------------------------------------------------------------------------------------


def test_the_configuration_that_ships_has_the_defaults() -> None:
    assert read_config(fixtures() / "minirt.toml") == asdict(Options())


def test_the_unit_that_ships_leaves_containers_running() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(fixtures() / "minirt.service")
    service = unit["Service"]
    assert (service["Type"], service["KillMode"], service["Delegate"]) == ("notify", "process", "yes")
    program, *words = service["ExecStart"].split()
    assert program.endswith("/minirt")
    assert words[0] == "serve"
    assert int(service["TimeoutStopSec"]) > 10


# -- starting and ending -----------------------------------------------------------------------------------------------------


def test_a_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(20)
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        daemon = Daemon(tmp_path)
        with running(daemon):
            assert manager.recv(4096).startswith(b"READY=1\n")
            assert daemon.end(signal.SIGTERM) == 0
            assert manager.recv(4096) == b"STOPPING=1"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_other_signals_end_it_in_good_order_too(tmp_path: Path, number: int) -> None:
    with running(Daemon(tmp_path)) as daemon:
        assert daemon.end(number) == 0
        assert not daemon.socket.exists()


def test_the_log_is_one_line_an_event(tmp_path: Path) -> None:
    with running(Daemon(tmp_path)) as daemon:
        with pytest.raises(grpc.RpcError):
            daemon.status("no\nsuch thing")
        daemon.runtime.Version(api.VersionRequest())
        daemon.end(signal.SIGTERM)
    lines = (tmp_path / "daemon.log").read_text().splitlines()
    form = re.compile(r'time=\S+Z level=(debug|info|warning|error) msg="[^"]+"( \w+=(?:[^\s"]+|"(?:[^"\\]|\\.)*"))*')
    assert [line for line in lines if not form.fullmatch(line)] == []
    [refused] = [line for line in lines if "call=ContainerStatus" in line]
    assert "level=info" in refused
    assert "code=NOT_FOUND" in refused
    assert re.search(r" ms=\d+\.\d", refused)
    assert any("call=Version" in line and "level=debug" in line for line in lines)


def test_a_socket_that_was_left_is_replaced(tmp_path: Path) -> None:
    with running(Daemon(tmp_path)) as daemon:
        daemon.end(signal.SIGKILL)
        assert stat.S_ISSOCK(daemon.socket.lstat().st_mode)
        daemon.start()
        assert daemon.runtime.Version(api.VersionRequest()).runtime_name == "minirt"
        assert stat.S_IMODE(daemon.socket.lstat().st_mode) == 0o600


def test_what_is_not_a_stale_socket_is_left_alone(tmp_path: Path) -> None:
    with running(Daemon(tmp_path / "first")) as daemon:
        other = ["--root", str(tmp_path / "root"), "--state", str(tmp_path / "state")]
        for listen in (daemon.socket, tmp_path / "file"):
            (tmp_path / "file").write_text("precious")
            done = minirt("serve", "--listen", f"unix://{listen}", *other)
            assert (done.returncode, done.stdout) == (1, "")
            assert str(listen) in done.stderr
        assert (tmp_path / "file").read_text() == "precious"
        assert daemon.runtime.Version(api.VersionRequest()).runtime_name == "minirt"
        assert not (tmp_path / "state/supervisor.sock").exists()


@pytest.mark.parametrize("shared", ["root", "state"])
def test_one_daemon_for_a_folder(tmp_path: Path, shared: str) -> None:
    with running(Daemon(tmp_path / "first")) as daemon:
        folders = {"root": tmp_path / "root", "state": tmp_path / "state", shared: getattr(daemon, shared)}
        words = [word for name, path in folders.items() for word in (f"--{name}", str(path))]
        done = minirt("serve", "--listen", f"unix://{tmp_path}/second.sock", *words)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"another daemon (process {daemon.process.pid if daemon.process else 0})" in done.stderr
        assert str(folders[shared]) in done.stderr
        if shared == "root":  # the second one's own supervisor
            assert (
                minirt("shutdown", "--root", str(tmp_path / "none"), "--state", str(tmp_path / "state")).returncode == 0
            )


@pytest.mark.parametrize("which", ["root", "state"])
def test_a_folder_that_cannot_be_written_to(tmp_path: Path, which: str) -> None:
    folder = tmp_path / which
    folder.mkdir()
    syscalls.mount("minirt-test", str(folder), "tmpfs", syscalls.MS_RDONLY, "size=64k")
    try:
        words = ["--root", str(tmp_path / "root"), "--state", str(tmp_path / "state")]
        done = minirt("serve", "--listen", f"unix://{tmp_path}/s.sock", *words)
    finally:
        syscalls.umount2(str(folder), syscalls.MNT_DETACH)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"--{which} {folder}: cannot be written to: read-only file system" in done.stderr
    assert not list((tmp_path / "state").glob("supervisor.sock"))


def test_a_state_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = minirt("serve", "--root", str(tmp_path / "root"), "--state", str(tmp_path / "file/state"))
    assert done.returncode == 1
    assert "not a directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_shutdown_where_nothing_is(tmp_path: Path) -> None:
    done = minirt("shutdown", "--root", str(tmp_path / "root"), "--state", str(tmp_path / "state"))
    assert (done.returncode, done.stdout) == (0, "nothing to end\n")
    assert list(tmp_path.iterdir()) == []


def test_shutdown_says_what_it_ended(tmp_path: Path) -> None:
    with running(Daemon(tmp_path)) as daemon:
        daemon.pod("one")
        daemon.pod("two")
        done = daemon.shut_down()
        assert done.returncode == 0
        assert done.stdout == "ended: the daemon, 2 pods, the supervisor\n"
        assert daemon.shut_down().stdout == "nothing to end\n"


def test_shutdown_of_what_does_not_end_says_so(tmp_path: Path) -> None:
    """A daemon that does not take signals: its lock is held by somebody else here."""
    from harness.minirt.cri.lock import end_holder, only_one
    from harness.minirt.errors import StateCorrupt, TimedOut

    script = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with only_one(tmp_path):
            (tmp_path / "daemon.lock").write_text(f"{holder.pid:<10}")
            with pytest.raises(TimedOut, match=f"process {holder.pid}"):
                end_holder(tmp_path, 0.1)
            (tmp_path / "daemon.lock").write_text("garbage")
            with pytest.raises(StateCorrupt):
                end_holder(tmp_path, 0.1)
        assert not end_holder(tmp_path, 0.1)
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()


def test_what_it_starts_does_not_hear_of_the_service_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.minirt.cri.notify import ServiceManager

    monkeypatch.setenv("NOTIFY_SOCKET", "/no/such/socket")
    manager = ServiceManager()
    assert "NOTIFY_SOCKET" not in os.environ
    manager.tell("READY=1")  # nobody is there to hear it


def test_a_daemon_that_is_asked_to_end_while_clients_wait(tmp_path: Path) -> None:
    with running(Daemon(tmp_path)) as daemon:
        stream = daemon.runtime.GetContainerEvents(api.GetEventsRequest())
        stream.initial_metadata()
        process = daemon.process
        assert process is not None
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: process.poll() is not None, 20, "its end")
        assert process.returncode == 0
        with pytest.raises(grpc.RpcError, match="minirt is ending"):
            next(stream)
