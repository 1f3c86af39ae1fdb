"""CNI: which configuration is taken, what plugins are told, and what is undone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.minirt.errors import Unavailable
from harness.minirt.network.cni import Attachment, Networks, PodNetwork
from harness.minirt.network.plugin import NetworkError, complaint

PLUGIN = """#!/bin/sh
read -r line
echo "$CNI_COMMAND $0 $CNI_IFNAME $CNI_CONTAINERID $CNI_NETNS $CNI_ARGS|$line" >> {log}
[ -e "$0.fails" ] && { echo '{"code": 7, "msg": "broken", "details": "by test"}'; exit 1; }
[ "$CNI_COMMAND" = DEL ] || echo '{"cniVersion": "1.0.0", "ips": [{"address": "fd00::2/64"}, {"address": "10.1.2.3/24"}]}'
"""
POD = PodNetwork("pod1", "/proc/self/ns/net", {"A": "1", "B": "2"}, {"portMappings": [{"hostPort": 1}], "dns": {}})


class Bench:
    def __init__(self, top: Path) -> None:
        self.conf, self.bin, self.log = top / "conf", top / "bin", top / "log"
        self.conf.mkdir()
        self.bin.mkdir()
        for name in ("first", "second"):
            path = self.bin / name
            path.write_text(PLUGIN.replace("{log}", str(self.log)))
            path.chmod(0o755)
        self.networks = Networks(self.conf, [top / "none", self.bin])

    def configure(
        self, name: str = "10-a.conflist", network: str = "net", plugins: tuple[str, ...] = ("first", "second")
    ) -> None:
        rows = [{"type": plugin, "capabilities": {"portMappings": plugin == "second"}} for plugin in plugins]
        (self.conf / name).write_text(json.dumps({"cniVersion": "1.0.0", "name": network, "plugins": rows}))

    def named(self) -> str:
        """The name of the network that new pods get."""
        network, problem = self.networks.current()
        assert network is not None, problem
        return network.name

    def calls(self) -> list[tuple[str, str, dict[str, object]]]:
        """``(command, plugin, stdin)`` of every run."""
        rows = []
        for line in self.log.read_text().splitlines():
            words, _, sent = line.partition("|")
            command, program, *_ = words.split()
            rows.append((command, Path(program).name, json.loads(sent)))
        return rows


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_without_a_configuration(bench: Bench) -> None:
    network, problem = bench.networks.current()
    assert network is None
    assert str(bench.conf) in problem
    with pytest.raises(Unavailable, match="not ready"):
        bench.networks.attach(bench.networks.plan(POD))


def test_configurations_are_read_again_when_they_change(bench: Bench) -> None:
    (bench.conf / "notes.txt").write_text("not for us")
    for name, network in (("20-b.conflist", "later"), ("10-a.conflist", "sooner")):
        bench.configure(name, network)
        assert bench.named() == network
    (bench.conf / "10-a.conflist").unlink()
    assert bench.named() == "later"
    (bench.conf / "15.conf").write_text('{"name": "single", "type": "first", "cniVersion": "0.4.0"}')
    assert bench.named() == "single"
    (bench.conf / "12.json").write_text('{"name": "json", "type": "first"}')
    assert bench.named() == "json"
    for path in bench.conf.iterdir():
        path.unlink()
    assert bench.networks.current()[0] is None


def test_a_broken_file_is_named_and_not_passed_over(bench: Bench) -> None:
    bench.configure("20-b.conflist")
    broken = bench.conf / "05-bad.conflist"
    broken.write_text("{")
    network, problem = bench.networks.current()
    assert network is None
    assert problem.startswith(f"{broken}: Expecting property name")
    with pytest.raises(Unavailable, match="05-bad"):
        bench.networks.plan(POD)
    broken.unlink()
    assert bench.networks.current()[1] == ""


def test_a_plugin_that_is_not_installed(bench: Bench) -> None:
    bench.configure(plugins=("first", "absent"))
    network, problem = bench.networks.current()
    assert network is None
    assert "'absent'" in problem


def test_attach_and_detach(bench: Bench) -> None:
    bench.configure()
    attachment = bench.networks.attach(bench.networks.plan(POD))
    assert attachment.ips == ("10.1.2.3", "fd00::2")
    again = Attachment.from_json(json.loads(json.dumps(attachment.to_json())))
    assert again.to_json() == attachment.to_json()
    bench.networks.detach(again)
    calls = bench.calls()
    assert [(command, plugin) for command, plugin, _ in calls] == [
        ("ADD", "first"), ("ADD", "second"), ("DEL", "second"), ("DEL", "first"),
    ]  # fmt: skip
    first, second, undone, _ = (sent for _, _, sent in calls)
    assert first["name"] == "net"
    assert "prevResult" not in first
    assert "runtimeConfig" not in first
    assert second["prevResult"] == attachment.result
    assert second["runtimeConfig"] == {"portMappings": [{"hostPort": 1}]}
    assert undone["prevResult"] == attachment.result
    assert "eth0 pod1 /proc/self/ns/net A=1;B=2|" in bench.log.read_text()


def test_what_was_done_can_be_undone_by_the_plan(bench: Bench) -> None:
    bench.configure()
    (bench.bin / "second.fails").touch()
    planned = bench.networks.plan(POD)
    with pytest.raises(NetworkError, match=r"network plugin 'second': ADD failed: broken: by test"):
        bench.networks.attach(planned)
    (bench.bin / "second.fails").unlink()
    bench.networks.detach(planned)
    calls = bench.calls()
    assert [(command, plugin) for command, plugin, _ in calls] == [
        ("ADD", "first"), ("ADD", "second"), ("DEL", "second"), ("DEL", "first"),
    ]  # fmt: skip
    assert "prevResult" not in calls[-1][2]


@pytest.mark.parametrize(("version", "told"), [("0.3.1", False), ("0.4.0", True), ("1.1.0", True)])
def test_the_result_at_the_end_is_told_since_0_4_0(bench: Bench, version: str, told: bool) -> None:
    (bench.conf / "x.conf").write_text(json.dumps({"name": "x", "type": "first", "cniVersion": version}))
    bench.networks.detach(bench.networks.attach(bench.networks.plan(POD)))
    _, (_, _, sent) = bench.calls()
    assert sent["cniVersion"] == version
    assert ("prevResult" in sent) == told


def test_addresses_of_old_results(bench: Bench) -> None:
    bench.configure()
    result = {"cniVersion": "0.2.0", "ip6": {"ip": "fd00::7/64"}, "ip4": {"ip": "10.0.0.7/24"}}
    assert Attachment(bench.networks.plan(POD).network, POD, result).ips == ("10.0.0.7", "fd00::7")


def test_complaints() -> None:
    assert complaint(1, b'{"code": 7, "msg": "a", "details": "b"}', b"") == "a: b"
    assert complaint(2, b"", b"panic: oh\n") == "panic: oh (exit status 2)"
    assert complaint(-9, b"", b"") == "it did not say why (signal 9)"


def test_every_plugin_has_its_turn_at_the_end(bench: Bench) -> None:
    bench.configure()
    attachment = bench.networks.attach(bench.networks.plan(POD))
    (bench.bin / "second.fails").touch()
    with pytest.raises(NetworkError):
        bench.networks.detach(attachment)
    assert bench.calls()[-1][:2] == ("DEL", "first")
