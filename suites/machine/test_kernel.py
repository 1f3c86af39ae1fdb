"""The kernel of the machine under trial: release, file systems, namespaces, seccomp, limits.

Every check of this suite asks through testinfra's `host`: the same ones run on this machine and, with
``-- --hosts ssh://name``, on another.
"""

from __future__ import annotations

import pytest
from testinfra.host import Host

from harness.machine import kernel


def test_release_is_new_enough(host: Host) -> None:
    """clone3 puts a process into its cgroup at birth since 5.7; without it every engine's cost would be measured late."""
    release = host.check_output("uname -r")
    assert kernel.parse_release(release) >= kernel.OLDEST, f"{release} is older than {kernel.OLDEST}"


def test_overlay_file_system(host: Host) -> None:
    types = kernel.parse_filesystems(host.file("/proc/filesystems").content_string)
    assert "overlay" in types or host.run("modprobe --dry-run overlay").rc == 0, (
        "images have no layers without overlayfs"
    )


@pytest.mark.parametrize("name", kernel.NAMESPACES)
def test_namespace(host: Host, name: str) -> None:
    assert host.file(f"/proc/self/ns/{name}").exists


@pytest.mark.parametrize("action", ["errno", "kill_process", "allow"])
def test_seccomp_action(host: Host, action: str) -> None:
    available = host.sysctl("kernel.seccomp.actions_avail")
    assert action in str(available).split()


@pytest.mark.parametrize("kind", ["cgroup", "ipc", "mnt", "net", "pid", "uts"])
def test_namespaces_may_be_made(host: Host, kind: str) -> None:
    """A limit of 0 is how an administrator switches a kind of namespace off."""
    path = host.file(f"/proc/sys/user/max_{kind}_namespaces")
    assert int(path.content_string) >= 64


def test_there_are_pids_enough(host: Host) -> None:
    assert int(host.sysctl("kernel.pid_max")) >= 32768
