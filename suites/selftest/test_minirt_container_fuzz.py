"""config.json, at random: valid documents become a plan that says what they say, others are refused and leave no trace.

Every run takes the same examples, so that it fails for everybody or for nobody.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minirt_bundle import Bundle, open_bundle
from minirt_documents import JSON, broken, documents

from harness.linux.capabilities import mask_of
from harness.linux.namespaces import FLAGS
from harness.minirt.container import hiding, mounting, nodes, operations, program, scheduling, terminal
from harness.minirt.container import privileges as becoming
from harness.minirt.container.cgroup import Layout, parse_layout
from harness.minirt.container.document import parse, render
from harness.minirt.container.options import PROPAGATION, parse_options
from harness.minirt.container.plan import Plan, make_plan
from harness.minirt.container.process import RLIMITS
from harness.minirt.container.seccomp import parse_profile
from harness.minirt.container.spec import DEVICE_KINDS, NAMESPACES, parse_spec
from harness.minirt.container.sysctl import path_of
from harness.minirt.errors import CgroupError, SpecError, Unsupported
from harness.minirt.oci.about import default_config

BOUNDED = settings(
    derandomize=True, deadline=None, database=None, max_examples=100, suppress_health_check=list(HealthCheck)
)
FEW = settings(BOUNDED, max_examples=30)
REFUSALS = (SpecError, Unsupported, CgroupError)
LONGEST_S = 2.0
"""of CPU time for one document: a hundred times what the largest one takes"""


def layouts() -> list[Layout]:
    v1 = "".join(
        f"{number} 25 0:{number} / /no/cgroup/{name} rw - cgroup cgroup rw,{name}\n"
        for number, name in enumerate(("cpu", "memory", "pids", "devices", "freezer", "cpuset", "blkio", "net_cls"), 26)
    )
    v2 = "26 25 0:26 / /no/cgroup rw - cgroup2 cgroup2 rw\n"
    return [parse_layout(v1, "1:cpu:/me\n0::/\n"), parse_layout(v2, "0::/me\n")]


def plan_of(document: Any, layout: Layout) -> Plan:
    """What `create` does before it makes anything, from the text of a file on."""
    spec = parse_spec(parse(render(document)), "/bundle")
    return make_plan(spec, id="box", bundle="/bundle", layout=layout)


def open_fds() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def children() -> set[str]:
    """Those of this thread: nothing but it makes plans."""
    return set(Path("/proc/thread-self/children").read_text().split())


def said(document: dict[str, Any]) -> dict[str, Any]:
    """What a valid document says, in the words of `planned`."""
    process, linux, root = document["process"], document["linux"], document["root"]
    user = process.get("user", {})
    masks = {name: mask_of(names) for name, names in process.get("capabilities", {}).items()}
    kinds = {NAMESPACES[entry["type"]] for entry in linux["namespaces"]}
    has_mounts = "mnt" in kinds
    propagation = PROPAGATION.get(linux.get("rootfsPropagation", ""), 0)
    scheduler = process.get("scheduler")
    devices = {
        node["path"]: (
            DEVICE_KINDS[node["type"]] | node.get("fileMode", 0o666),
            node.get("major", 0),
            node.get("minor", 0),
            node.get("uid", 0),
            node.get("gid", 0),
        )
        for node in linux.get("devices", ())
    }
    return {
        "version": document["ociVersion"],
        "annotations": document.get("annotations", {}),
        "root": os.path.join("/bundle", root["path"]),  # noqa: PTH118
        "args": tuple(process["args"]),
        "env": tuple(process.get("env", ())),
        "cwd": process["cwd"],
        "user": (user.get("uid", 0), user.get("gid", 0), tuple(user.get("additionalGids", ())), user.get("umask")),
        "bounding": masks.get("bounding", 0),
        "sets": tuple(masks.get(name, 0) for name in ("effective", "permitted", "inheritable")),
        "ambient": masks.get("ambient", 0) & masks.get("permitted", 0) & masks.get("inheritable", 0),
        "no_new_privileges": process.get("noNewPrivileges", False),
        "rlimits": [(RLIMITS[limit["type"]], limit["soft"], limit["hard"]) for limit in process.get("rlimits", ())],
        "oom": process.get("oomScoreAdj"),
        "terminal": (process.get("terminal", False), _size(process)),
        "scheduler": None
        if scheduler is None
        else (scheduling.POLICIES[scheduler["policy"]], scheduler.get("nice", 0)),
        "asks": {
            *({"scheduling"} if "scheduler" in process or "ioPriority" in process else ()),
            *({"offsets"} if _sets_clocks(linux) else ()),
            *({"devices"} if linux.get("netDevices") else ()),
            *(
                {"hooks"}
                if document.get("hooks", {}).get("prestart") or document.get("hooks", {}).get("createRuntime")
                else ()
            ),
        },
        "namespaces": sum(FLAGS[kind] for kind in kinds),
        "names": (document.get("hostname", ""), document.get("domainname", "")),
        "sysctl": {path_of(name): value for name, value in linux.get("sysctl", {}).items()},
        "mounts": [
            (entry["destination"], parse_options(entry.get("options", ()))) for entry in document.get("mounts", ())
        ],
        "devices": devices if has_mounts else {},
        "masked": tuple(linux.get("maskedPaths", ())),
        "readonly": tuple(linux.get("readonlyPaths", ())),
        "readonly_root": root.get("readonly", False),
        "propagation": propagation,
        "personality": {"LINUX": 0, "LINUX32": 8}.get(linux.get("personality", {}).get("domain")),
        "memory_policy": linux.get("memoryPolicy", {}).get("mode"),
        "hooks": {
            name: [
                (
                    hook["path"],
                    tuple(hook.get("args", ())),
                    tuple(hook["env"]) if "env" in hook else None,  # the runtime's own
                    hook.get("timeout"),
                )
                for hook in hooks
            ]
            for name, hooks in document.get("hooks", {}).items()
            if hooks
        },
        "seccomp": linux.get("seccomp") is not None,
        "memory_limit": linux.get("resources", {}).get("memory", {}).get("limit"),
        "pids_limit": linux.get("resources", {}).get("pids", {}).get("limit"),
        "net_devices": {name: entry.get("name", name) for name, entry in linux.get("netDevices", {}).items()},
        "offsets": {
            f"{clock} {offset.get('secs', 0)} {offset.get('nanosecs', 0)}"
            for clock, offset in linux.get("timeOffsets", {}).items()
        },
    }


def _sets_clocks(linux: dict[str, Any]) -> bool:
    """Whether there is a time namespace of its own, whose clocks the runtime has to set."""
    return bool(linux.get("timeOffsets")) and {"type": "time"} in linux.get("namespaces", [])


def _size(process: dict[str, Any]) -> tuple[int, int] | None:
    size = process.get("consoleSize")
    return (size["height"], size["width"]) if size and process.get("terminal") else None


def planned(plan: Plan) -> dict[str, Any]:
    """What the steps of a plan will do."""
    steps = (*plan.foyer, *plan.setup, *plan.finish)

    def one(kind: type) -> Any:
        found = [step for step in steps if isinstance(step, kind)]
        assert len(found) <= 1, found
        return found[0] if found else None

    user, privileges, oom = one(becoming.BecomeUser), one(becoming.SetPrivileges), one(operations.SetOomScore)
    names, personality, policy = (
        one(operations.SetNames),
        one(operations.SetPersonality),
        one(scheduling.SetMemoryPolicy),
    )
    masked, readonly, change = one(hiding.MaskPaths), one(hiding.ReadonlyPaths), one(mounting.ChangeRoot)
    late, opened = one(operations.Unshare), one(terminal.OpenTerminal)
    made = [step for step in steps if isinstance(step, nodes.MakeDevice)]
    standard = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")}
    modes = {number: name for name, number in scheduling.MEMORY_MODES.items()}
    assert plan.process is not None
    scheduler = plan.process.scheduler
    return {
        "version": plan.version,
        "annotations": plan.annotations,
        "root": plan.root,
        "args": plan.program.args,
        "env": one(program.FindProgram).env,
        "cwd": one(becoming.ChangeFolder).cwd,
        "user": (user.uid, user.gid, user.groups, user.umask),
        "bounding": user.bounding,
        "sets": (privileges.effective, privileges.permitted, privileges.inheritable),
        "ambient": privileges.ambient,
        "no_new_privileges": privileges.no_new_privileges,
        "rlimits": [(step.resource, step.soft, step.hard) for step in steps if isinstance(step, operations.SetRlimit)],
        "oom": None if oom is None else oom.score,
        "terminal": (opened is not None, None if opened is None else opened.size),
        "scheduler": None if scheduler is None else (scheduler.policy, scheduler.nice),
        "asks": {step.word for step in steps if isinstance(step, operations.AskParent)},
        "namespaces": plan.clone_flags | (0 if late is None else late.flags),
        "names": ("", "") if names is None else (names.hostname, names.domainname),
        "sysctl": {step.name: step.value for step in steps if isinstance(step, operations.SetSysctl)},
        "mounts": [
            (step.destination, step.options)
            for step in steps
            if isinstance(step, mounting.Bind | mounting.MountFilesystem)
        ],
        "devices": {
            step.path: (step.mode, step.major, step.minor, step.uid, step.gid)
            for step in made
            if step.path not in standard
        },
        "masked": () if masked is None else masked.paths,
        "readonly": () if readonly is None else readonly.paths,
        "readonly_root": one(mounting.ReadonlyRoot) is not None,
        "propagation": 0 if change is None else change.propagation,
        "personality": None if personality is None else personality.persona,
        "memory_policy": None if policy is None else modes[policy.policy.mode & 0x1FFF],
        "hooks": {
            name: [(hook.path, hook.args, hook.env, hook.timeout_s) for hook in hooks]
            for name, hooks in plan.hooks.items()
        },
        "seccomp": plan.seccomp is not None and privileges.seccomp == plan.seccomp.code,
        "memory_limit": plan.resources.memory_limit,
        "pids_limit": plan.resources.pids_limit,
        "net_devices": plan.net_devices,
        "offsets": {f"{clock} {secs} {nanosecs}" for clock, (secs, nanosecs) in plan.time_offsets.items()},
    }


@BOUNDED
@given(documents())
def test_a_valid_document_becomes_a_plan_that_says_the_same(document: dict[str, Any]) -> None:
    before = copy.deepcopy(document)
    for layout in layouts():
        plan = plan_of(document, layout)
        assert planned(plan) == said(document)
        assert plan.cgroup.folders
        assert not any(Path(folder).exists() for folder in plan.cgroup.folders.values())
    assert document == before


@BOUNDED
@given(documents(), st.dictionaries(st.text(min_size=1, max_size=12).map(lambda name: f"x{name}"), JSON, max_size=3))
def test_unknown_fields_change_nothing(document: dict[str, Any], unknown: dict[str, Any]) -> None:
    document = copy.deepcopy(document)
    spec = parse_spec(document, "/bundle")
    for part in (document, document["process"], document["linux"], document["root"], *document.get("mounts", ())):
        part |= unknown
    for name in ("windows", "solaris", "vm", "zos", "freebsd"):
        document[name] = unknown
    assert parse_spec(document, "/bundle") == spec


@settings(BOUNDED, max_examples=200)
@given(broken())
def test_a_broken_document_is_refused_or_valid_and_nothing_else(document: Any) -> None:
    fds, before, started = open_fds(), children(), time.process_time()
    for layout in layouts():
        try:
            plan_of(document, layout)
        except ValueError:  # of the text of a document: half of a surrogate pair in it, for one
            pass
        except REFUSALS as error:
            assert str(error)
            assert not isinstance(error, SpecError) or error.path
    assert time.process_time() - started < LONGEST_S
    assert open_fds() == fds
    # Those of other tests may end meanwhile.
    assert not children() - before


@BOUNDED
@given(JSON, st.sampled_from(["", "process", "linux", "root", "mounts", "hooks", "annotations", "hostname"]))
def test_anything_at_all_in_the_place_of_a_part(value: Any, part: str) -> None:
    document = copy.deepcopy(default_config())
    try:
        plan_of(document | {part: value} if part else value, layouts()[0])
    except (ValueError, *REFUSALS):
        pass


@BOUNDED
@given(JSON)
def test_anything_at_all_as_a_seccomp_profile(value: Any) -> None:
    document = copy.deepcopy(default_config())
    document["linux"]["seccomp"] = value
    try:
        plan_of(document, layouts()[1])
    except REFUSALS:
        if isinstance(value, dict):
            with pytest.raises(SpecError):
                parse_profile(value)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with open_bundle(tmp_path_factory.mktemp("bundle")) as bundle:
        yield bundle


WRONG: list[tuple[str, Any]] = [
    ("ociVersion", "2.0.0"),
    ("root", None),
    ("root.path", "no/such/folder"),
    ("process.cwd", "here"),
    ("process.args", []),
    ("process.env", ["A"]),
    ("process.rlimits", [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]),
    ("process.scheduler", {"policy": "SCHED_FIFO"}),
    ("process.ioPriority", {"class": "IOPRIO_CLASS_NONE"}),
    ("process.execCPUAffinity", {"initial": "x"}),
    ("hooks", {"createRuntime": [{"path": "true"}]}),
    ("mounts", [{"destination": "/proc/self", "type": "tmpfs"}]),
    ("linux.namespaces", [{"type": "mount"}, {"type": "mount"}]),
    ("linux.namespaces", [{"type": "mount"}, {"type": "uts", "path": "/proc/self/ns/pid"}]),
    ("linux.namespaces", [{"type": "mount"}, {"type": "uts", "path": "/proc/self/status"}]),
    ("linux.uidMappings", [{"containerID": 0, "hostID": 0, "size": 1}]),
    ("linux.sysctl", {"kernel.panic": "1"}),
    ("linux.seccomp", {"defaultAction": "SCMP_ACT_NOTIFY"}),
    ("linux.seccomp", {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": []}]}),
    ("linux.memoryPolicy", {"mode": "MPOL_BIND"}),
    ("linux.netDevices", {"a/b": {}}),
    ("linux.netDevices", {"not-there": {}}),
    ("linux.intelRdt", {"closID": "../x"}),
    ("linux.timeOffsets", {"monotonic": {"secs": 1}}),
    ("linux.devices", [{"path": "/dev/x", "type": "c", "major": 1 << 20, "minor": 0}]),
    ("linux.resources", {"memory": {"limit": "much"}}),
    ("linux.rootfsPropagation", "everywhere"),
    ("linux.maskedPaths", ["proc/kcore"]),
]


@pytest.mark.parametrize("place", range(len(WRONG)))
def test_every_wrong_value_is_refused_with_its_path(place: int) -> None:
    """What the fuzz of the whole command takes from has to be wrong, each for itself."""
    with pytest.raises(REFUSALS) as caught:
        refuse(wrong_document([place]))
    assert WRONG[place][0].split(".")[-1] in str(caught.value)


def refuse(document: dict[str, Any]) -> None:
    spec = parse_spec(document, "/bundle")
    if not Path(spec.root).is_dir() and document["root"]["path"] != "rootfs":
        raise SpecError("root.path", "is not a folder")
    make_plan(spec, id="box", bundle="/bundle", layout=layouts()[0])


def wrong_document(places: list[int], base: dict[str, Any] | None = None) -> dict[str, Any]:
    document = copy.deepcopy(default_config() if base is None else base)
    for place in places:
        path, value = WRONG[place]
        *way, last = path.split(".")
        here = document
        for key in way:
            here = here.get(key) or here.setdefault(key, {}) or {}
        here[last] = value
    return document


@FEW
@given(
    st.lists(st.integers(0, len(WRONG) - 1), min_size=1, max_size=3, unique=True),
    st.sampled_from(["", "", "", "{", "[]", '{"ociVersion": "1.0.0"', "\udcff", "[" * 5000]),
)
def test_a_wrong_document_creates_nothing(bundle: Bundle, places: list[int], text: str) -> None:
    """The whole command: one line of error, and neither a state, nor a cgroup, nor a mount, nor a process."""
    bundle.write = lambda: None  # type: ignore[method-assign]
    document = json.dumps(
        wrong_document([place for place in places if WRONG[place][0] != "root" or len(places) == 1], bundle.config)
    )
    (bundle.folder / "config.json").write_bytes((text or document).encode(errors="surrogateescape"))
    done = bundle.minirt("create", "box")
    assert done.returncode == 1
    assert done.stderr.startswith("minirt: ")
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert not bundle.states.exists() or list(bundle.states.iterdir()) == []
    assert bundle.leftovers() == []
