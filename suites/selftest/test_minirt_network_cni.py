"""CNI: which configuration is taken, what plugins are told, and what is undone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.minirt.errors import Unavailable
from harness.minirt.network.cni import Attachment, NetworkError, Networks, PodNetwork, parse_network

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
        bench.networks.attach(POD)


def test_configurations_are_read_again_when_they_change(bench: Bench) -> None:
    (bench.conf / "05-bad.conflist").write_text("{")
    (bench.conf / "notes.txt").write_text("not for us")
    assert "05-bad" in bench.networks.current()[1]
    bench.configure("20-b.conflist", "later")
    network, problem = bench.networks.current()
    assert network is not None
    assert (network.name, problem) == ("later", "")
    bench.configure("10-a.conflist", "sooner")
    network, _ = bench.networks.current()
    assert network is not None
    assert network.name == "sooner"
    (bench.conf / "10-a.conflist").unlink()
    (bench.conf / "20-b.conflist").unlink()
    assert bench.networks.current()[0] is None


def test_a_plugin_that_is_not_installed(bench: Bench) -> None:
    bench.configure(plugins=("first", "absent"))
    network, problem = bench.networks.current()
    assert network is None
    assert "'absent'" in problem


def test_attach_and_detach(bench: Bench) -> None:
    bench.configure()
    attachment = bench.networks.attach(POD)
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


def test_what_was_done_is_undone_when_a_later_plugin_fails(bench: Bench) -> None:
    bench.configure()
    (bench.bin / "second.fails").touch()
    with pytest.raises(NetworkError, match=r"second.*broken: by test"):
        bench.networks.attach(POD)
    assert [(command, plugin) for command, plugin, _ in bench.calls()] == [
        ("ADD", "first"), ("ADD", "second"), ("DEL", "second"), ("DEL", "first"),
    ]  # fmt: skip


def test_every_plugin_has_its_turn_at_the_end(bench: Bench) -> None:
    bench.configure()
    attachment = bench.networks.attach(POD)
    (bench.bin / "second.fails").touch()
    with pytest.raises(NetworkError):
        bench.networks.detach(attachment)
    assert bench.calls()[-1][:2] == ("DEL", "first")


@pytest.mark.parametrize("text", ["[]", "{}", '{"name": "x"}', '{"plugins": [{"type": "a"}]}', '{"name": "x", "plugins": [{}]}',
                                  '{"name": "x", "plugins": []}', '{"name": "x", "type": "../../bin/sh"}', "nonsense"])  # fmt: skip
def test_malformed(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_network(text, "x")


def test_a_single_plugin() -> None:
    network = parse_network('{"name": "x", "type": "first", "cniVersion": "0.4.0"}', "x.conf")
    assert (network.version, len(network.plugins)) == ("0.4.0", 1)
