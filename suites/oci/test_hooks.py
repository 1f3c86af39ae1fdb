"""Hooks: when they run, where, what they are told, and what comes of one that fails (config.md, "POSIX-platform Hooks")."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness.linux.namespaces import identity
from harness.model.area import OciArea
from harness.session.oci import SLEEP, OciTrial
from harness.session.oci_box import Box
from harness.session.oci_breach import drops, puts, takes

pytestmark = pytest.mark.operation(OciArea.HOOKS)

BEFORE = ("prestart", "createRuntime", "createContainer")
"""Of the create operation, in their order."""
ALL = (*BEFORE, "startContainer", "poststart", "poststop")
RUNTIME = ("prestart", "createRuntime", "poststart", "poststop")
"""Those that run in the runtime's namespaces."""


def journal(box: Box, kind: str) -> str:
    """The journal as a hook of `kind` sees it."""
    return "/journal" if kind == "startContainer" else str(box.journal)


def hooked(oci: OciTrial, *kinds: str, script: str, args: tuple[str, ...] = SLEEP) -> Box:
    """A bundle with a hook of each of `kinds`; in `script` JOURNAL and KIND stand for the journal and the hook's kind."""
    box = oci.box(args=args).keep_journal()
    for kind in kinds:
        box.hook(kind, script.replace("JOURNAL", journal(box, kind)).replace("KIND", kind))
    return box


def whole_life(oci: OciTrial, box: Box) -> None:
    oci.sail(box)
    oci.end(box)
    oci.delete(box)


def reordered(config: Any) -> Any:
    """A runtime that runs hooks as late as it can."""
    hooks = config["hooks"]
    hooks["poststart"] = hooks.pop("prestart") + hooks["poststart"]
    return config


@pytest.mark.breach(takes(reordered))
def test_hooks_run_in_the_order_of_the_lifecycle(oci: OciTrial) -> None:
    """Lifecycle, 3 to 13: prestart, createRuntime, createContainer, startContainer, the program, poststart, poststop."""
    box = hooked(oci, *ALL, script="echo KIND >>JOURNAL", args=("/bin/sh", "-c", "echo program >>/journal; sleep 3600"))
    oci.create(box)
    assert box.entries == list(BEFORE)
    oci.start(box)
    oci.wait(lambda: {"program", "poststart"} <= set(box.entries), "the program and the hook after it")
    assert box.entries[:4] == [*BEFORE, "startContainer"]
    oci.end(box)
    assert "poststop" not in box.entries
    oci.delete(box)
    assert box.entries[-1] == "poststop"
    assert sorted(box.entries) == sorted([*ALL, "program"])


@pytest.mark.breach(
    takes(lambda config: {**config, "hooks": {kind: rows[::-1] for kind, rows in config["hooks"].items()}})
)
@pytest.mark.parametrize("kind", ALL)
def test_hooks_of_a_kind_run_in_their_order(oci: OciTrial, kind: str) -> None:
    """Hooks: "Hooks MUST be called in the listed order"."""
    box = oci.box(args=SLEEP).keep_journal()
    for number in (1, 2, 3):
        box.hook(kind, f"echo {number} >>{journal(box, kind)}")
    oci.sail(box)
    if kind == "startContainer":
        # The container itself runs them, and may still do so after `start` has ended.
        oci.wait(lambda: len(box.entries) >= 3, "three hooks to run")
    oci.end(box)
    oci.delete(box)
    assert box.entries == ["1", "2", "3"]


@pytest.mark.breach(drops("hooks"))
@pytest.mark.parametrize("kind", RUNTIME)
def test_hook_in_the_runtimes_namespaces(oci: OciTrial, kind: str) -> None:
    """Hooks: prestart, createRuntime, poststart and poststop hooks "MUST execute in the runtime namespace"."""
    box = hooked(oci, kind, script="for kind in mnt pid uts; do readlink /proc/self/ns/$kind; done >>JOURNAL")
    whole_life(oci, box)
    keeper = oci.trial.arena.keeper_pid
    assert box.entries == [f"{name}:[{identity(keeper, name)[1]}]" for name in ("mnt", "pid", "uts")]


@pytest.mark.breach(drops("hooks"))
@pytest.mark.parametrize("kind", ["createContainer", "startContainer"])
@pytest.mark.kernel
def test_hook_in_the_containers_namespaces(oci: OciTrial, kind: str) -> None:
    """Hooks: createContainer and startContainer hooks "MUST execute in the container namespace"."""
    names = ("mnt", "uts", "ipc")
    box = hooked(oci, kind, script="for kind in mnt uts ipc; do readlink /proc/self/ns/$kind; done >>JOURNAL")
    oci.sail(box)
    oci.wait(lambda: len(box.entries) == len(names), "the hook to run")
    assert box.entries == [f"{name}:[{identity(oci.pid(box), name)[1]}]" for name in names]


@pytest.mark.breach(drops("hooks"))
def test_create_container_hook_is_found_in_the_runtimes_namespace(oci: OciTrial) -> None:
    """Hooks, createContainer: "The value of path MUST resolve in the runtime namespace"; it runs "before the pivot_root operation": it
    sees the machine's files, and the container's mounts below its root.
    """
    box = hooked(
        oci, "createContainer", script="[ -d PATH/bin ] && grep -c ' PATH/proc ' /proc/self/mountinfo >>JOURNAL"
    )
    hook = box.config["hooks"]["createContainer"][0]
    hook["args"] = [word.replace("PATH", str(box.rootfs)) for word in hook["args"]]
    oci.create(box)
    assert box.entries == ["1"]


@pytest.mark.breach(drops("hooks"))
def test_start_container_hook_is_found_in_the_container(oci: OciTrial) -> None:
    """Hooks, startContainer: "The value of path MUST resolve in the container namespace"."""
    box = oci.box(args=SLEEP).keep_journal()
    program = box.rootfs / "only-in-here"
    program.write_text("#!/bin/sh\necho ran >>/journal\n")
    program.chmod(0o755)
    box.set("hooks.startContainer", [{"path": "/only-in-here"}])
    oci.create(box)
    assert box.entries == []
    oci.start(box)
    oci.wait(lambda: box.entries == ["ran"], "the hook to run")


STATUS = {
    "prestart": ("creating", "created"),
    "createRuntime": ("creating", "created"),
    "createContainer": ("creating", "created"),
    "startContainer": ("created", "creating"),
    "poststart": ("running",),
    "poststop": ("stopped",),
}


def deaf(config: Any) -> Any:
    """A runtime that tells hooks nothing."""
    for rows in config["hooks"].values():
        for row in rows:
            row["args"][2] = f"exec </dev/null; {row['args'][2]}"
    return config


@pytest.mark.breach(takes(deaf))
@pytest.mark.parametrize("kind", ALL)
def test_state_on_the_stdin_of_a_hook(oci: OciTrial, kind: str) -> None:
    """Hooks: "The state of the container MUST be passed to hooks over stdin so that they may do work appropriate to the current state
    of the container".
    """
    box = hooked(oci, kind, script='printf "%s\\n" "$STATE" >>JOURNAL; echo end >>JOURNAL').set(
        "annotations", {"org.example.a": "b"}
    )
    oci.sail(box)
    pid = oci.pid(box)
    if kind == "startContainer":
        oci.wait(lambda: "end" in box.entries, "the hook to run")
    oci.end(box)
    oci.delete(box)
    lines = [line for line in box.entries if line.strip() not in ("", "end")]
    assert lines, "nothing was on stdin"
    state = json.loads("\n".join(lines))
    assert state["id"] == box.id
    assert state["bundle"] == str(box.path)
    assert state["ociVersion"]
    assert state["annotations"]["org.example.a"] == "b"
    assert state["status"] in STATUS[kind]
    if kind in ("prestart", "createRuntime", "poststart"):
        assert state["pid"] == pid


@pytest.mark.breach(
    puts("hooks.createRuntime.0.args", ["sh", "-c", "exit 0"]), puts("hooks.createRuntime.0.env", ["OTHER=1"])
)
def test_arguments_and_environment_of_a_hook(oci: OciTrial) -> None:
    """Hooks: args have "the same semantics as IEEE Std 1003.1-2008 execv's argv", env "the same semantics as [...] environ": these
    and no others.
    """
    box = oci.box(args=SLEEP).keep_journal()
    words = [
        "zero",
        "-c",
        f"cat >/dev/null; cat /proc/$$/cmdline /proc/$$/environ | tr '\\0' '\\n' >>{box.journal}",
        "one",
        "",
        "two words",
    ]
    env = ["ONE=1", "TWO=a=b", "EMPTY="]
    box.set("hooks.createRuntime", [{"path": "/bin/sh", "args": words, "env": env}])
    oci.create(box)
    assert box.entries == [*words, *env]


@pytest.mark.breach(drops("hooks.createRuntime"))
def test_a_hook_without_arguments(oci: OciTrial) -> None:
    """Hooks: "args (array of strings, OPTIONAL)"; path alone is a hook."""
    box = oci.box(args=SLEEP).keep_journal()
    program = box.path / "hook"
    program.write_text(f"#!/bin/sh\necho ran >>{box.journal}\n")
    program.chmod(0o755)
    oci.create(box.set("hooks.createRuntime", [{"path": str(program)}]))
    assert box.entries == ["ran"]


@pytest.mark.breach(drops("hooks.createRuntime.0.timeout"))
def test_a_hook_that_takes_too_long_is_ended(oci: OciTrial) -> None:
    """Hooks: "timeout (int, OPTIONAL) is the number of seconds before aborting the hook": which is a failure."""
    box = oci.box(args=SLEEP).keep_journal()
    box.hook("createRuntime", f"echo $$ >>{box.journal}; exec sleep 4", timeout=1)
    assert oci.cannot_create(box)
    assert oci.shell(f"[ -e /proc/{box.entries[0]} ] || echo gone") == "gone"


@pytest.mark.breach(drops("hooks"))
@pytest.mark.parametrize("kind", BEFORE)
def test_a_hook_of_create_that_fails(oci: OciTrial, kind: str) -> None:
    """Lifecycle, 3 to 5: "If any [...] hook fails, the runtime MUST generate an error, stop the container, and continue the lifecycle at
    step 12": it is destroyed.
    """
    box = hooked(oci, kind, script="exit 3")
    assert oci.cannot_create(box)


@pytest.mark.breach(drops("hooks.createRuntime.1"))
def test_after_a_hook_that_fails_no_other_is_run(oci: OciTrial) -> None:
    """Lifecycle, 4: after a failure the lifecycle goes on "at step 12": no later hook of create is run."""
    box = oci.box(args=SLEEP).keep_journal()
    for script in ("echo first", "exit 3", "echo third"):
        box.hook("createRuntime", f"{script} >>{box.journal}")
    box.hook("createContainer", f"echo later >>{box.journal}")
    assert oci.cannot_create(box)
    assert box.entries == ["first"]


@pytest.mark.breach(drops("hooks.poststop"))
def test_after_a_hook_of_create_that_fails_poststop_is_run(oci: OciTrial) -> None:
    """Lifecycle, 3 to 5: "continue the lifecycle at step 12", after which, 13, "The poststop hooks MUST be invoked by the runtime"."""
    box = hooked(oci, "poststop", script="echo KIND >>JOURNAL").hook("createRuntime", "exit 3")
    assert oci.cannot_create(box)
    assert box.entries == ["poststop"]


@pytest.mark.breach(drops("hooks"))
def test_a_start_container_hook_that_fails(oci: OciTrial) -> None:
    """Lifecycle, 7: "If any startContainer hook fails, the runtime MUST generate an error, stop the container": the program is not
    run.
    """
    box = hooked(oci, "startContainer", script="exit 3", args=("/bin/sh", "-c", "echo ran; sleep 3600"))
    oci.create(box)
    done = oci.attempt("start", box.id)
    oci.await_end(box)
    assert oci.output(box) == ""
    assert done.status != 0 or box.stderr.read_text(), "no error was generated"


@pytest.mark.breach(drops("hooks"))
def test_a_poststart_hook_that_fails(oci: OciTrial) -> None:
    """Lifecycle, 9: "If any poststart hook fails, the runtime MUST generate an error, stop the container, and continue the lifecycle at
    step 12".
    """
    box = oci.create(hooked(oci, "poststart", script="exit 3"))
    assert oci.attempt("start", box.id).status != 0
    oci.await_end(box)


@pytest.mark.breach(drops("hooks.poststop.1"))
def test_a_poststop_hook_that_fails_stops_nothing(oci: OciTrial) -> None:
    """Lifecycle, 13: "If any poststop hook fails, the runtime MUST log a warning, but the remaining hooks and lifecycle continue as if
    the hook had succeeded".
    """
    box = oci.box(args=SLEEP).keep_journal()
    box.hook("poststop", "exit 3").hook("poststop", f"echo second >>{box.journal}")
    oci.sail(box)
    oci.end(box)
    oci.attempt("delete", box.id)
    assert box.entries == ["second"]
    assert oci.status(box) == ""


@pytest.mark.breach(drops("hooks"))
def test_poststop_is_run_when_all_is_gone(oci: OciTrial) -> None:
    """Lifecycle, 12 and 13: "The container MUST be destroyed", then "the poststop hooks MUST be invoked"."""
    box = hooked(oci, "poststop", script="ls -d FOLDER >>JOURNAL 2>/dev/null || echo gone >>JOURNAL")
    oci.create(box)
    folders = oci.folders(box)
    oci.needs(folders, "the runtime made no cgroup")
    hook = box.config["hooks"]["poststop"][0]
    oci.do("delete", "--force", box.id)
    hook["args"] = [word.replace("FOLDER", str(folders[0])) for word in hook["args"]]
    oci.sail(box)
    oci.end(box)
    oci.delete(box)
    assert box.entries[-1:] == ["gone"]
