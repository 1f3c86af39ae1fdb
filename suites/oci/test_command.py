"""The command line itself, as callers of OCI runtimes rely on it (runtime-tools' command-line-interface.md; runc's man pages)."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from harness.command import Completed
from harness.model.area import OciArea
from harness.session.oci import SLEEP, OciTrial
from harness.session.oci_breach import accepts, answers, drops, pretends, says, swallows

pytestmark = pytest.mark.operation(OciArea.COMMAND)


def logged(path: Path) -> list[dict[str, Any]]:
    """The entries of a log of JSON objects, on as many lines as they like: containerd's shim decodes one after the other. Raises
    `AssertionError`.
    """
    assert path.exists(), "nothing was logged"
    rows, rest = [], path.read_text().strip()
    while rest:
        try:
            row, end = json.JSONDecoder().raw_decode(rest)
        except ValueError:
            raise AssertionError(f"no JSON in the log: {rest[:200]!r}") from None
        rows.append(row)
        rest = rest[end:].lstrip()
    return rows


def listed(done: Completed) -> list[Any]:
    """A list that was printed as JSON. Raises `AssertionError`."""
    try:
        found = json.loads(done.stdout)
    except ValueError:
        found = None
    assert isinstance(found, list), f"no list was printed: {done.stdout[:200]!r}"
    return found


@pytest.mark.breach(says("", stdout=b"1.0\n"))
def test_version(oci: OciTrial) -> None:
    """runc, --version: "runc version X", then "commit:", "spec:": Docker and containerd read it so."""
    lines = oci.do("", "--version").text.splitlines()
    assert re.match(r"\S+ version \S+", lines[0]), lines
    spec = [line.partition(":")[2].strip() for line in lines if line.startswith("spec:")]
    assert len(spec) == 1
    assert re.fullmatch(r"\d+\.\d+\.\d+(-\S+)?", spec[0])


@pytest.mark.breach(accepts("no-such-verb"))
def test_an_unknown_verb_is_an_error(oci: OciTrial) -> None:
    """Command line: "If the runtime is invoked with an unrecognized command, it MUST exit with a nonzero exit code"."""
    assert oci.attempt("no-such-verb").status != 0


@pytest.mark.breach(accepts("create", "start", "state"))
@pytest.mark.parametrize("verb", ["create", "start", "state"])
def test_an_unknown_flag_is_an_error(oci: OciTrial, verb: str) -> None:
    """Command line: what is not understood is not done."""
    box = oci.box(args=SLEEP)
    oci.write(box)
    assert oci.refused(verb, "--no-such-flag", box.id)
    assert oci.pids(box) == []


@pytest.mark.breach(swallows("", "--log"))
def test_error_in_the_log(oci: OciTrial, tmp_path: Path) -> None:
    """runc: "--log value: set the log file to write runc logs to", "--log-format value: set the log format ('text' (default), or
    'json')": containerd's shim reads the msg of the last row of level error.
    """
    log = tmp_path / "log.json"
    done = oci.attempt("start", "no-such-container", globals=("--log", str(log), "--log-format", "json"))
    assert done.status != 0
    errors = [row for row in logged(log) if row.get("level") == "error"]
    assert errors
    assert "does not exist" in errors[-1]["msg"] or "no-such-container" in errors[-1]["msg"]
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", errors[-1]["time"])


@pytest.mark.breach(swallows("", "--log"))
def test_reason_of_a_refusal_in_the_log(oci: OciTrial, tmp_path: Path) -> None:
    """Runc --log: the error of create, which has no stderr of its own under a shim, is there in words."""
    log = tmp_path / "log.json"
    box = oci.box(args=("/no/such/program",))
    oci.write(box)
    words = ("create", "--bundle", str(box.path), box.id)
    done = oci.attempt(*words, globals=("--log", str(log), "--log-format", "json"))
    if done.status == 0:
        done = oci.attempt("start", box.id, globals=("--log", str(log), "--log-format", "json"))
    assert done.status != 0
    assert any("/no/such/program" in row["msg"] for row in logged(log) if row["level"] in ("error", "fatal"))


@pytest.mark.breach(says("state", stderr=b"odd\n"))
def test_success_is_silent(oci: OciTrial) -> None:
    """Command line, state: "stdout: The runtime MUST print the state JSON to its stdout": nothing else is said by what succeeds."""
    box = oci.create(oci.box(args=SLEEP))
    for verb, words in (("start", (box.id,)), ("kill", (box.id, "CONT")), ("state", (box.id,))):
        done = oci.do(verb, *words)
        assert done.stderr == b"", verb
        assert (done.stdout == b"") is (verb != "state"), verb


@pytest.mark.breach(says("list", stdout=b"[]"))
def test_list_as_json(oci: OciTrial) -> None:
    """runc, list: "--format value, -f value: select one of: table or json": an object for each container, with its id, pid, status and
    bundle.
    """
    oci.needs_verb("list")
    one, other = oci.launch(), oci.create(oci.box(args=SLEEP))
    rows = {row["id"]: row for row in listed(oci.do("list", "--format", "json"))}
    assert {name: row["status"] for name, row in rows.items()} == {one.id: "running", other.id: "created"}
    assert rows[one.id]["pid"] == oci.pid(one)
    assert rows[one.id]["bundle"] == str(one.path)


@pytest.mark.breach(swallows("list", "--quiet", value=False))
def test_list_quietly(oci: OciTrial) -> None:
    """runc, list: "--quiet, -q: display only container IDs"."""
    oci.needs_verb("list")
    box = oci.launch()
    assert oci.do("list", "--quiet").text.split() == [box.id]


@pytest.mark.breach(says("list", stdout=b""))
def test_list_as_a_table(oci: OciTrial) -> None:
    """runc, list: a table by default, with a title for each column."""
    oci.needs_verb("list")
    box = oci.launch()
    title, *rows = oci.do("list").text.splitlines() or [""]
    assert {"PID", "STATUS", "BUNDLE"} <= set(title.split())
    assert [row.split()[0] for row in rows] == [box.id]


@pytest.mark.breach(says("list", stdout=b"[{}]"))
def test_list_of_none(oci: OciTrial) -> None:
    """runc, list --format json: null, or an empty list, where there is no container."""
    oci.needs_verb("list")
    assert json.loads(oci.do("list", "--format", "json").stdout or b"null") in ([], None)


@pytest.mark.breach(says("ps", stdout=b"[1]\n"))
@pytest.mark.kernel
def test_ps_as_json(oci: OciTrial) -> None:
    """runc, ps: "--format value, -f value: select one of: table(default) or json": the process numbers, as the machine counts."""
    oci.needs_verb("ps")
    box = oci.launch(args=("/bin/sh", "-c", "sleep 3600 & echo ready; wait"))
    oci.await_output(box, "ready")
    oci.wait(lambda: len(oci.pids(box)) == 2, "two processes in the container's cgroup")
    assert sorted(listed(oci.do("ps", "--format", "json", box.id))) == oci.pids(box)


@pytest.mark.breach(says("ps", stdout=b"PID\n"))
@pytest.mark.kernel
def test_ps_as_a_table(oci: OciTrial) -> None:
    """runc, ps: ps(1)'s own table, of the container's processes alone."""
    oci.needs_verb("ps")
    oci.needs(oci.shell("command -v ps || true"), "there is no ps")
    box = oci.launch()
    title, *rows = oci.do("ps", box.id).text.splitlines()
    column = title.split().index("PID")
    assert [int(row.split()[column]) for row in rows] == oci.pids(box)


@pytest.mark.breach(accepts("ps"))
def test_ps_of_an_unknown_container_is_an_error(oci: OciTrial) -> None:
    """Errors: an operation on a container that does not exist generates one."""
    oci.needs_verb("ps")
    assert oci.refused("ps", "no-such-container")


@pytest.mark.breach(pretends("spec"))
def test_spec(oci: OciTrial) -> None:
    """runc, spec: "The spec command creates the new specification file named "config.json" for the bundle": which can be run."""
    oci.needs_verb("spec")
    box = oci.box()
    oci.do("spec", "--bundle", str(box.path))
    path = box.path / "config.json"
    assert path.exists(), "there is no config.json"
    config = json.loads(path.read_text())
    assert config["ociVersion"]
    assert config["process"]["args"] == ["sh"]
    assert config["root"]["path"] == "rootfs"
    config["process"] |= {"args": ["/bin/echo", "ahoy"], "terminal": False, "rlimits": []}
    config["linux"]["cgroupsPath"] = box.cgroup
    box.config = config
    assert oci.run(box) == "ahoy\n"


@pytest.mark.breach(pretends("spec"))
def test_spec_overwrites_nothing(oci: OciTrial) -> None:
    """runc, spec: "File config.json exists. Remove it first"."""
    oci.needs_verb("spec")
    box = oci.box()
    (box.path / "config.json").write_text("mine")
    assert oci.refused("spec", "--bundle", str(box.path))
    assert (box.path / "config.json").read_text() == "mine"


@pytest.mark.breach(pretends("spec"))
def test_spec_of_a_rootless_container(oci: OciTrial) -> None:
    """runc, spec: "--rootless: generate a configuration for a rootless container": a user namespace with one mapping."""
    oci.needs_flag("spec", "--rootless")
    box = oci.box()
    oci.do("spec", "--rootless", "--bundle", str(box.path))
    path = box.path / "config.json"
    assert path.exists(), "there is no config.json"
    linux = json.loads(path.read_text())["linux"]
    assert {"type": "user"} in linux["namespaces"]
    assert [row["hostID"] for row in linux.get("uidMappings", [])] == [os.geteuid()]


@pytest.mark.breach(answers("state", "status", "stopped"))
def test_containers_of_another_root_are_not_seen(oci: OciTrial, tmp_path: Path) -> None:
    """runc: "--root value: root directory for storage of container state": an id is unique "within the scope of the runtime"."""
    box = oci.launch()
    done = oci.attempt("state", box.id, globals=("--root", str(tmp_path / "other")))
    assert done.status != 0
    assert oci.status(box) == "running"


# Checkpoints


@pytest.mark.breach(pretends("checkpoint"), drops("annotations"))
def test_checkpoint_and_restore(oci: OciTrial, tmp_path: Path) -> None:
    """runc, checkpoint and restore: "--image-path value: path for saving criu image files": the program goes on where it was."""
    oci.needs_verb("checkpoint")
    oci.needs_verb("restore")
    oci.needs(
        oci.shell("criu check >/dev/null 2>&1 && echo works || true"), "there is no criu that works with this kernel"
    )
    box = oci.launch(args=("/bin/sh", "-c", "i=0; while :; do i=$((i + 1)); echo $i >/tmp/count; sleep 0.05; done"))
    oci.wait((box.rootfs / "tmp" / "count").exists, "the program to count")
    images = tmp_path / "images"
    work = ("--work-path", str(tmp_path / "work"))
    oci.do("checkpoint", "--image-path", str(images), *work, box.id)
    assert images.is_dir(), "there are no images"
    reached = int((box.rootfs / "tmp" / "count").read_text())
    oci.attempt("delete", "--force", box.id)
    words = (
        "--detach",
        "--image-path",
        str(images),
        "--bundle",
        str(box.path),
        "--pid-file",
        str(box.pid_file),
        box.id,
    )
    oci.do("restore", *words)
    oci.wait(lambda: int((box.rootfs / "tmp" / "count").read_text() or 0) > reached, "the program to count on")
    assert oci.status(box) == "running"
