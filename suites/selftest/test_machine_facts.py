"""harness.machine.facts and harness.machine.kernel: parsers on captured text, and this machine itself."""

import json
import os
import platform

import pytest

from harness.machine import facts, kernel

CPUINFO_ARM = "processor\t: 0\nBogoMIPS\t: 243.75\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n\nprocessor\t: 1\n"
CPUINFO_X86 = "processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\n\nprocessor\t: 1\nmodel name\t: Other CPU\n"


def some_facts(**changes: object) -> facts.Facts:
    values = {
        "kernel": "6.1.0",
        "distribution": "Debian",
        "architecture": "x86_64",
        "cgroup_mode": "v2",
        "cgroup_controllers": ("cpu", "memory"),
        "cpu_model": "Some CPU",
        "cores": 2,
        "memory_bytes": 8 << 30,
        "disk_free_bytes": 50 << 30,
        "root": True,
        "systemd": True,
        "capabilities": tuple(facts.CONSEQUENCES),
        "python": "3.11.2",
    }
    return facts.Facts(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('NAME="Debian GNU/Linux"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n', "Debian GNU/Linux 12 (bookworm)"),
        ("# comment\nID=alpine\nNAME='Alpine Linux'\n", "Alpine Linux"),
        ("ID=arch\n", "arch"),
        ("", "unknown"),
    ],
)
def test_distribution(text: str, name: str) -> None:
    assert facts.parse_distribution(text) == name


def test_cpu_model_of_x86_and_arm() -> None:
    assert facts.parse_cpu_model(CPUINFO_X86) == "Some CPU @ 2.00GHz"
    assert facts.parse_cpu_model(CPUINFO_ARM) == "CPU implementer 0x41, CPU part 0xd0c"
    assert facts.parse_cpu_model("") == "unknown"


def test_memory_is_in_bytes() -> None:
    assert facts.parse_memory("MemTotal:  24684096 kB\nMemFree: 1 kB\n") == 24684096 * 1024
    with pytest.raises(ValueError, match="MemTotal"):
        facts.parse_memory("MemFree: 1 kB\n")


def test_this_machine_is_described_in_json() -> None:
    found = facts.read_facts()
    data = json.loads(json.dumps(found.to_json()))
    assert data["kernel"] == os.uname().release
    assert data["cores"] == len(os.sched_getaffinity(0))
    assert data["cgroup_mode"] in {"v1", "hybrid", "v2"}
    assert data["memory_bytes"] > 1 << 28
    assert data["root"] is (os.geteuid() == 0)
    assert set(data["lacking_capabilities"]) == set(found.lacking)
    assert "capabilities" not in data


def test_a_lacking_capability_tells_what_follows() -> None:
    all_but_one = tuple(name for name in facts.CONSEQUENCES if name != "CAP_SYS_RESOURCE")
    lacking = some_facts(capabilities=all_but_one).lacking
    assert list(lacking) == ["CAP_SYS_RESOURCE"]
    assert "oom_score_adj" in lacking["CAP_SYS_RESOURCE"]
    assert some_facts().lacking == {}


def test_release_of_a_kernel() -> None:
    assert kernel.parse_release("6.18.44-custom") == (6, 18)
    with pytest.raises(ValueError, match="not a kernel release"):
        kernel.parse_release("unknown")


def test_a_module_counts_as_a_feature_that_is_there(tmp_path: os.PathLike[str]) -> None:
    from pathlib import Path

    folder = Path(tmp_path) / "6.1.0"
    folder.mkdir()
    (folder / "modules.dep").write_text("kernel/fs/overlayfs/overlay.ko.xz:\nkernel/fs/ext4/ext4.ko:\n")
    assert kernel.has_module("overlay", "6.1.0", Path(tmp_path))
    assert not kernel.has_module("over", "6.1.0", Path(tmp_path))
    assert not kernel.has_module("overlay", "5.0.0", Path(tmp_path))


def test_the_running_kernel_has_what_a_trial_needs() -> None:
    features = {feature.name: feature for feature in kernel.read_features()}
    assert features["kernel"].state == platform.release()
    assert [feature for feature in features.values() if feature.reason] == []


def test_an_old_kernel_is_told_why_it_will_not_do() -> None:
    features = {feature.name: feature for feature in kernel.read_features(release="4.19.0-27-amd64")}
    assert "5.7" in features["kernel"].reason
