"""Devices by the Container Device Interface: what files of the host give to a container."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from cri_api.v1 import api_pb2 as api
from minirt_daemon import running_with_image

from harness.minirt.cri.cdi import asked_devices, inject_devices
from harness.minirt.errors import InvalidArgument, NotFound


def write(path: Path, kind: str = "acme.com/radar", **devices: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    rows = [{"name": name, "containerEdits": edits} for name, edits in devices.items()]
    path.write_text(json.dumps({"cdiVersion": "0.6.0", "kind": kind, "devices": rows}))


def bare() -> dict[str, Any]:
    return {
        "process": {"env": ["PATH=/bin", "A=old"], "user": {"uid": 5, "gid": 6, "additionalGids": [6]}},
        "mounts": [{"destination": "/x/y", "type": "bind", "source": "/old", "options": []}],
        "linux": {"devices": [], "resources": {"devices": []}},
    }


def injected(folders: list[Path], *names: str) -> dict[str, Any]:
    spec = bare()
    inject_devices(spec, names, [str(folder) for folder in folders])
    return spec


def test_edits(tmp_path: Path) -> None:
    write(
        tmp_path / "a.json",
        one={
            "env": ["A=new", "B=1"],
            "additionalGids": [3],
            "deviceNodes": [{"path": "/dev/null", "permissions": "r"}],
        },
        two={
            "mounts": [{"hostPath": "/lib", "containerPath": "/x"}, {"hostPath": "/new", "containerPath": "/x/y"}],
            "deviceNodes": [{"path": "/dev/made", "type": "b", "major": 7, "minor": 9, "uid": 1, "fileMode": 0o600}],
            "hooks": [{"hookName": "createContainer", "path": "/bin/true", "timeout": 3}],
        },
    )
    spec = injected([tmp_path], "acme.com/radar=one", "acme.com/radar=two")
    assert spec["process"]["env"] == ["PATH=/bin", "A=new", "B=1"]
    assert spec["process"]["user"]["additionalGids"] == [3, 6]
    null, made = spec["linux"]["devices"]
    assert (null["type"], null["major"], null["minor"], null["uid"], null["gid"]) == ("c", 1, 3, 5, 6)
    assert (made["type"], made["major"], made["minor"], made["uid"], made["fileMode"]) == ("b", 7, 9, 1, 0o600)
    assert [(rule["major"], rule["access"]) for rule in spec["linux"]["resources"]["devices"]] == [(1, "r"), (7, "rwm")]
    assert [(row["destination"], row["source"]) for row in spec["mounts"]] == [("/x", "/lib"), ("/x/y", "/new")]
    assert spec["hooks"] == {"createContainer": [{"path": "/bin/true", "timeout": 3}]}


def test_which_file_counts(tmp_path: Path) -> None:
    low, high = tmp_path / "etc", tmp_path / "run"
    write(low / "a.json", one={"env": ["FROM=etc"]}, both={"env": ["FROM=etc"]})
    write(low / "b.json", twice={"env": ["X=1"]})
    write(low / "c.json", twice={"env": ["X=2"]})
    (high).mkdir()
    (high / "a.yaml").write_text(
        "cdiVersion: 0.6.0\nkind: acme.com/radar\ncontainerEdits: {env: [OF=all]}\n"
        "devices: [{name: both, containerEdits: {env: [FROM=run]}}, {name: all}]\n"
    )
    (high / "broken.json").write_text("{")
    (high / "notes.txt").write_text("nothing")
    folders = [low, high, tmp_path / "absent"]
    assert injected(folders, "acme.com/radar=one")["process"]["env"][2:] == ["FROM=etc"]
    both = injected(folders, "acme.com/radar=both", "acme.com/radar=all")["process"]["env"][2:]
    assert both == ["OF=all", "FROM=run"]
    with pytest.raises(NotFound, match="unresolvable"):
        injected(folders, "acme.com/radar=absent")
    with pytest.raises(InvalidArgument, match="ambiguous"):
        injected(folders, "acme.com/radar=twice")


@pytest.mark.parametrize(
    "edits",
    [
        {"deviceNodes": [{"path": "/etc/passwd"}]},
        {"deviceNodes": [{"path": "/dev/no-such-device"}]},
        {"deviceNodes": [{}]},
        {"hooks": [{"hookName": "poststop", "path": "/bin/true"}]},
        {"mounts": [{"hostPath": "/x"}]},
        {"env": [5]},
    ],
)
def test_files_that_ask_for_the_impossible(tmp_path: Path, edits: dict[str, Any]) -> None:
    write(tmp_path / "a.json", one=edits)
    with pytest.raises(InvalidArgument, match="acme"):
        injected([tmp_path], "acme.com/radar=one")


def test_names_that_are_asked_for() -> None:
    config = api.ContainerConfig(
        CDI_devices=[api.CDIDevice(name="a/b=c")], annotations={"cdi.k8s.io/x": "a/b=c,d/e=f", "other": "g/h=i"}
    )
    assert asked_devices(config) == ["a/b=c", "d/e=f"]
    for name in ("", "a", "a/b", "a/b=", "a=b", "/b=c", "a/b/c=d"):
        with pytest.raises(InvalidArgument):
            asked_devices(api.ContainerConfig(CDI_devices=[api.CDIDevice(name=name)]))


def test_a_device_in_a_container(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/driver").write_text("driver")
    hook = ["sh", "-c", f"cat > {tmp_path}/state"]
    write(
        tmp_path / "cdi/acme.json",
        one={
            "env": ["RADAR=on"],
            "deviceNodes": [{"path": "/dev/radar", "hostPath": "/dev/fuse", "permissions": "r"}],
            "mounts": [{"hostPath": str(tmp_path / "lib"), "containerPath": "/lib/radar", "options": ["bind", "ro"]}],
            "hooks": [{"hookName": "createRuntime", "path": "/bin/sh", "args": hook, "env": ["PATH=/bin:/usr/bin"]}],
        },
    )
    with running_with_image(tmp_path / "minirt", ["--cdi-dirs", str(tmp_path / "cdi")]) as (daemon, image):
        pod = daemon.pod()
        device = api.CDIDevice(name="acme.com/radar=one")
        id = daemon.run(pod, image, "while :; do sleep 0.1; done", CDI_devices=[device])
        script = "echo $RADAR; cat /lib/radar/driver; : < /dev/radar; echo; echo > /dev/radar || echo refused"
        assert daemon.exec(id, "sh", "-c", script).stdout == b"on\ndriver\nrefused\n"
        assert json.loads((tmp_path / "state").read_text())["id"] == id
        with pytest.raises(grpc.RpcError) as error:
            daemon.create(pod, image, "true", "absent", CDI_devices=[api.CDIDevice(name="acme.com/radar=two")])
        assert error.value.code() == grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
