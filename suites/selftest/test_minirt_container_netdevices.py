"""linux.netDevices: devices that move into a container with their names, addresses and state (config-linux.md)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from minirt_bundle import Bundle, open_bundle

from harness.linux import namespaces, syscalls
from harness.minirt.container.netdevices import LONGEST_NAME, parse_devices
from harness.minirt.container.reader import Reader
from harness.minirt.errors import SpecError

pytestmark = pytest.mark.skipif(shutil.which("ip") is None, reason="ip (iproute2) is not installed")


class Machine:
    """A network namespace that stands for the machine's, so that no device of the real one is touched."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Made by an interpreter of its own, which may leave its namespace.
        code = (
            "import sys; from harness.linux import namespaces; namespaces.unshare(['net']); "
            "namespaces.bind_namespace(sys.argv[1], 'net')"
        )
        subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=30)
        self._fd = os.open(path, os.O_RDONLY)

    def ip(self, *words: str) -> str:
        argv = ["nsenter", f"--net={self.path}", "ip", *words]
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30).stdout

    def has(self, name: str) -> bool:
        return f" {name}: " in self.ip("-o", "link").replace("@", ": ")

    def minirt(self, bundle: Bundle, *words: str, **named: Any) -> subprocess.CompletedProcess[str]:
        return bundle.minirt(*words, preexec_fn=lambda: syscalls.setns(self._fd, syscalls.CLONE_NEWNET), **named)

    def close(self) -> None:
        os.close(self._fd)
        syscalls.umount2(str(self.path))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "net")
    try:
        machine.ip("link", "add", "one", "type", "veth", "peer", "name", "other")
        machine.ip("link", "set", "other", "up")
        machine.ip("address", "add", "192.0.2.7/24", "dev", "one")
        machine.ip("address", "add", "2001:db8::7/64", "dev", "one", "nodad")
        machine.ip("address", "add", "198.51.100.1/24", "dev", "one", "valid_lft", "1000", "preferred_lft", "900")
        machine.ip("link", "set", "one", "up", "mtu", "1400")
        yield machine
    finally:
        machine.close()


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    (tmp_path / "bundle").mkdir()
    with open_bundle(tmp_path / "bundle") as bundle:
        for applet in ("ip",):
            (bundle.rootfs / "bin" / applet).hardlink_to(bundle.rootfs / "bin/busybox")
        yield bundle


@pytest.mark.parametrize(("wanted", "name"), [({}, "one"), ({"name": "eth0"}, "eth0"), ({"name": "lan%d"}, "lan0")])
def test_a_device_moves_with_its_addresses(bundle: Bundle, machine: Machine, wanted: dict[str, str], name: str) -> None:
    bundle.config["linux"]["netDevices"] = {"one": wanted}
    bundle.sh(f"cat /sys/class/net/{name}/mtu /sys/class/net/{name}/flags; ip address show dev {name}")
    done = machine.minirt(bundle, "run", "box")
    assert done.returncode == 0, done.stderr
    mtu, flags, *lines = done.stdout.splitlines()
    assert mtu == "1400"
    assert int(flags, 16) & 1
    shown = " ".join(" ".join(lines).split())
    assert "inet 192.0.2.7/24" in shown
    assert "inet6 2001:db8::7/64 scope global" in shown
    assert "198.51.100.1" not in shown  # not a permanent one
    assert not machine.has("one")


def test_a_device_moves_into_a_namespace_that_is_there(bundle: Bundle, machine: Machine, tmp_path: Path) -> None:
    pod = Machine(tmp_path / "pod")
    try:
        for entry in bundle.config["linux"]["namespaces"]:
            if entry["type"] == "network":
                entry["path"] = str(pod.path)
        bundle.config["linux"]["netDevices"] = {"one": {"name": "two"}}
        done = machine.minirt(bundle.sh("true"), "run", "box")
        assert done.returncode == 0, done.stderr
        # "The runtime MUST NOT attempt to move the interface out of the namespace before deletion."
        assert "192.0.2.7/24" in pod.ip("address", "show", "dev", "two")
        # "If a network device with the specified name already exists ..., the runtime MUST generate an error"
        machine.ip("link", "add", "one", "type", "veth", "peer", "name", "another")
        refused = machine.minirt(bundle, "run", "box")
        assert refused.returncode == 1
        assert "the container has a device two already" in refused.stderr
        assert machine.has("one")
        assert bundle.leftovers() == []
    finally:
        pod.close()


def test_what_fails_later_gives_the_devices_back(bundle: Bundle, machine: Machine) -> None:
    """As runtime.md has it: "Generating an error MUST leave the state of the environment as if the operation were never attempted"."""
    bundle.config["linux"]["netDevices"] = {"one": {"name": "eth0"}}
    bundle.config["hooks"] = {"createRuntime": [{"path": "/bin/false"}]}
    done = machine.minirt(bundle.sh("true"), "create", "box")
    assert done.returncode == 1
    assert "createRuntime" in done.stderr
    shown = machine.ip("address", "show", "dev", "one")
    assert "192.0.2.7/24" in shown
    assert "2001:db8::7/64" in shown
    assert ",UP" in shown
    assert bundle.leftovers() == []


def test_a_device_that_is_not_there_is_refused(bundle: Bundle, machine: Machine) -> None:
    bundle.config["linux"]["netDevices"] = {"nowhere": {}}
    done = machine.minirt(bundle.sh("true"), "create", "box")
    assert done.returncode == 1
    assert "linux.netDevices.nowhere: there is no such network device" in done.stderr
    assert bundle.leftovers() == []


@pytest.mark.parametrize(
    "content",
    [
        {"": {}},
        {"a/b": {}},
        {"a:b": {}},
        {"a b": {}},
        {"..": {}},
        {"x" * (LONGEST_NAME + 1): {}},
        {"a": {"name": "x" * (LONGEST_NAME + 1)}},
        {"a": {"name": "c"}, "b": {"name": "c"}},
        {"a": {"name": "b"}, "b": {}},
        {"a": 1},
    ],
)
def test_names_that_no_device_can_have(content: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        parse_devices(Reader(content, "linux.netDevices"))
    assert caught.value.path.startswith("linux.netDevices")


def test_names_of_devices() -> None:
    content = {"a": None, "b": {}, "c": {"name": "d"}, "e": {"name": "lan%d"}, "f": {"name": "lan%d"}}
    devices = parse_devices(Reader(content, "linux.netDevices"))
    assert devices == {"a": "a", "b": "b", "c": "d", "e": "lan%d", "f": "lan%d"}


def test_nothing_leaks_into_our_own_namespace(machine: Machine) -> None:
    status = machine.path.stat()
    assert namespaces.identity("self", "net") != (status.st_dev, status.st_ino)
