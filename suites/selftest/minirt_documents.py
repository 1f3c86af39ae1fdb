"""Strategies for config.json documents: valid ones that use every field of the Linux part, and ways to break one."""

from __future__ import annotations

import copy
import string
from typing import Any

from hypothesis import strategies as st

from harness.linux.capabilities import NAMES
from harness.minirt.container.options import ATTRIBUTES, FLAGS, PROPAGATION
from harness.minirt.container.process import RLIMITS
from harness.minirt.container.scheduling import MEMORY_FLAGS, SCHEDULER_FLAGS
from harness.minirt.container.seccomp import _OPERATORS

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from([-1, 0, 1 << 31, 1 << 32, 1 << 63, 1 << 64, 1 << 200, "", "\0", "\ud800", "..", "/", "1", "²"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
"""Anything at all."""

_WORDS = st.text(string.ascii_letters + string.digits + "äß.-_", min_size=1, max_size=12)
_PLAIN = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=8)
_PATHS = st.lists(_PLAIN, min_size=1, max_size=3).map(lambda words: "/" + "/".join(words))
_PLACES = _PATHS.filter(lambda path: not path.startswith("/proc"))
_IDS = st.integers(0, (1 << 32) - 2)
_ENV = st.lists(
    st.tuples(_PLAIN, st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)), max_size=4
).map(lambda pairs: [f"{name}={value}" for name, value in pairs])
_CAPABILITIES = st.lists(st.sampled_from(NAMES), max_size=5, unique=True)
_SIZES = st.integers(-1, 1 << 40)
KINDS = ("pid", "network", "ipc", "uts", "mount", "cgroup", "time", "user")


def _optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


def _object(required: dict[str, st.SearchStrategy[Any]], **optional: st.SearchStrategy[Any]) -> Any:
    return st.fixed_dictionaries(required, optional=optional)


def _list(item: st.SearchStrategy[Any], most: int = 3) -> st.SearchStrategy[list[Any]]:
    return st.lists(item, max_size=most)


def _choices(known: Any, most: int = 3) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(sorted(known)), max_size=most, unique=True)


_PRIVILEGES = _CAPABILITIES.flatmap(
    lambda names: st.fixed_dictionaries(
        {"bounding": st.just(names), "permitted": st.just(names)},
        optional={name: st.just(names) for name in ("effective", "inheritable", "ambient")},
    )
)
_RLIMIT = st.tuples(st.sampled_from(sorted(RLIMITS)), st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1)).map(
    lambda row: {"type": row[0], "soft": min(row[1:]), "hard": max(row[1:])}
)
_SCHEDULER = (
    _object({"policy": st.sampled_from(["SCHED_OTHER", "SCHED_BATCH", "SCHED_IDLE"])}, nice=st.integers(-20, 19))
    | _object(
        {"policy": st.sampled_from(["SCHED_FIFO", "SCHED_RR"]), "priority": st.integers(1, 99)},
        flags=_choices(SCHEDULER_FLAGS),
    )
    | st.lists(st.integers(1024, 1 << 40), min_size=3, max_size=3).map(
        lambda times: (
            dict(zip(("runtime", "deadline", "period"), sorted(times), strict=True)) | {"policy": "SCHED_DEADLINE"}
        )
    )
)
PROCESS = _object(
    {"args": st.lists(_WORDS, min_size=1, max_size=3), "cwd": _PATHS},
    env=_ENV,
    terminal=st.booleans(),
    consoleSize=st.fixed_dictionaries({"height": st.integers(0, 65535), "width": st.integers(0, 65535)}),
    user=_object({"uid": _IDS, "gid": _IDS}, umask=st.integers(0, 0o777), additionalGids=_list(_IDS)),
    capabilities=_PRIVILEGES,
    rlimits=st.lists(_RLIMIT, max_size=4, unique_by=lambda limit: limit["type"]),
    noNewPrivileges=st.booleans(),
    oomScoreAdj=st.integers(-1000, 1000),
    scheduler=_SCHEDULER,
    ioPriority=st.fixed_dictionaries(
        {
            "class": st.sampled_from(["IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE"]),
            "priority": st.integers(0, 7),
        }
    ),
    execCPUAffinity=_optional(initial=st.sampled_from(["0", "0-3,7", ""]), final=st.sampled_from(["1", ""])),
    commandLine=_WORDS,
)
_OPTIONS = _list(
    st.sampled_from(
        sorted({*FLAGS, *PROPAGATION, *(f"r{word}" for word in ATTRIBUTES)} - {"bind", "rbind", "remount"})
    ),
    5,
)
_FILESYSTEM = _object(
    {"destination": _PLACES, "type": st.sampled_from(["tmpfs", "ext4", "sysfs", "mqueue"])},
    source=_PLAIN,
    options=st.tuples(_OPTIONS, st.sampled_from([[], ["size=1m"], ["mode=700", "tmpcopyup"]])).map(
        lambda two: [*two[0], *two[1]]
    ),
)
_BIND = st.tuples(
    _PLACES, st.sampled_from(["bind", "none", ""]), _PATHS | _PLAIN, _OPTIONS, st.sampled_from(["bind", "rbind"])
).map(lambda row: {"destination": row[0], "type": row[1], "source": row[2], "options": [*row[3], row[4]]})
_PROC = st.just({"destination": "/proc", "type": "proc", "source": "proc"})
MOUNTS = _list(_FILESYSTEM | _BIND | _PROC, 5)
_HOOKS = _list(_object({"path": _PATHS}, args=_list(_WORDS), env=_ENV, timeout=st.integers(1, 1 << 40)))
HOOKS = _optional(
    **dict.fromkeys(("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"), _HOOKS)
)
_NODE = _object(
    {
        "path": _PLACES,
        "type": st.sampled_from(["c", "u", "b"]),
        "major": st.integers(0, 4095),
        "minor": st.integers(0, (1 << 20) - 1),
    },
    fileMode=st.integers(0, 0o777),
    uid=_IDS,
    gid=_IDS,
) | _object({"path": _PLACES, "type": st.just("p")}, fileMode=st.integers(0, 0o777))
_NUMBER = st.integers(0, 300)
_THROTTLE = st.fixed_dictionaries({"major": _NUMBER, "minor": _NUMBER, "rate": st.integers(0, (1 << 64) - 1)})
RESOURCES = _optional(
    memory=_optional(limit=_SIZES, reservation=_SIZES, swappiness=st.integers(0, 100), disableOOMKiller=st.booleans()),
    cpu=_optional(
        shares=st.integers(0, 262144),
        quota=st.integers(-1, 1 << 30),
        period=st.integers(0, 1_000_000),
        cpus=st.sampled_from(["0", "0-3,7"]),
        mems=st.sampled_from(["0"]),
        idle=st.integers(0, 1),
    ),
    pids=st.fixed_dictionaries({"limit": st.integers(-1, 1 << 22)}),
    blockIO=_optional(
        weight=st.integers(10, 1000),
        throttleReadBpsDevice=_list(_THROTTLE),
        throttleWriteBpsDevice=_list(_THROTTLE),
        throttleReadIOPSDevice=_list(_THROTTLE),
        throttleWriteIOPSDevice=_list(_THROTTLE),
    ),
    hugepageLimits=_list(
        st.fixed_dictionaries({"pageSize": st.sampled_from(["2MB", "64KB", "1GB"]), "limit": st.integers(0, 1 << 40)})
    ),
    network=_optional(classID=_IDS, priorities=_list(st.fixed_dictionaries({"name": _PLAIN, "priority": _NUMBER}))),
    rdma=st.dictionaries(_PLAIN, _object({"hcaHandles": _NUMBER}, hcaObjects=_NUMBER), max_size=2),
    devices=_list(
        _object(
            {"allow": st.booleans()},
            type=st.sampled_from(["a", "b", "c"]),
            major=_NUMBER,
            minor=_NUMBER,
            access=st.sampled_from(["r", "rw", "rwm", "m"]),
        )
    ),
)
_RULE = _object(
    {
        "names": st.lists(
            st.sampled_from(["read", "mkdir", "openat", "socket", "no_such_call"]), min_size=1, max_size=3
        ),
        "action": st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"]),
    },
    args=_list(
        st.fixed_dictionaries(
            {
                "index": st.integers(0, 5),
                "op": st.sampled_from(sorted(_OPERATORS)),
                "value": st.integers(0, (1 << 64) - 1),
                "valueTwo": st.integers(0, (1 << 64) - 1),
            }
        ),
        2,
    ),
)
SECCOMP = _object(
    {"defaultAction": st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL"])},
    flags=_choices(["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]),
    syscalls=_list(_RULE, 2),
)
_MEMORY_POLICY = _object({"mode": st.sampled_from(["MPOL_DEFAULT", "MPOL_LOCAL"])}) | _object(
    {
        "mode": st.sampled_from(["MPOL_BIND", "MPOL_INTERLEAVE", "MPOL_PREFERRED_MANY"]),
        "nodes": st.sampled_from(["0", "0-1"]),
    },
    flags=_choices(MEMORY_FLAGS, 1),
)
_SYSCTLS = {
    "network": ["net.ipv4.ip_forward", "net/ipv4/conf/eth0.1/mtu", "net.ipv4.conf.eth0/1.mtu"],
    "ipc": ["kernel.shmmax", "fs.mqueue.msg_max"],
    "uts": ["kernel.domainname"],
    "user": ["user.max_user_namespaces"],
}
_OFFSET = _optional(secs=st.integers(-1000, 1 << 30), nanosecs=st.integers(0, 999_999_999))
_ALL_IDS = [{"containerID": 0, "hostID": 0, "size": (1 << 32) - 1}]


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """A valid document. What depends on a namespace is only there with it."""
    kinds = draw(st.lists(st.sampled_from(KINDS), unique=True))
    linux: dict[str, Any] = {"namespaces": [{"type": kind} for kind in kinds]}
    document: dict[str, Any] = {
        "ociVersion": draw(st.sampled_from(["1.0.0", "1.0.2-dev", "1.2.0-rc.1", "1.3.0+dev", "1.99.3-a.0+b.01"])),
        "root": {"path": draw(st.sampled_from(["rootfs", "/some/where"]))},
        "process": draw(PROCESS),
        "linux": linux,
    }
    document |= draw(
        _optional(hooks=HOOKS, annotations=st.dictionaries(_WORDS, st.text(_PLAIN_TEXT, max_size=5), max_size=3))
    )
    linux |= draw(
        _optional(
            resources=RESOURCES,
            seccomp=SECCOMP,
            memoryPolicy=_MEMORY_POLICY,
            cgroupsPath=_PATHS | _PLAIN,
            personality=st.fixed_dictionaries({"domain": st.sampled_from(["LINUX", "LINUX32"])}),
        )
    )
    if "uts" in kinds:
        document |= draw(_optional(hostname=_PLAIN, domainname=_PLAIN))
    if "mount" in kinds:
        document["mounts"] = draw(MOUNTS)
        document["root"]["readonly"] = draw(st.booleans())
        linux |= draw(
            _optional(
                devices=st.lists(_NODE, max_size=3, unique_by=lambda node: node["path"]),
                maskedPaths=_list(_PATHS),
                readonlyPaths=_list(_PATHS),
                rootfsPropagation=st.sampled_from(sorted(PROPAGATION)),
            )
        )
    if "user" in kinds:
        linux["uidMappings"] = linux["gidMappings"] = _ALL_IDS
    if "time" in kinds:
        linux |= draw(_optional(timeOffsets=_optional(monotonic=_OFFSET, boottime=_OFFSET)))
    if "network" in kinds:
        linux |= draw(_optional(netDevices=st.sampled_from([{"lo": {"name": "lo%d"}}, {"lo": {}}])))
    names = [name for kind in kinds for name in _SYSCTLS.get(kind, ())]
    if names:
        linux["sysctl"] = draw(st.dictionaries(st.sampled_from(names), _PLAIN, max_size=3))
    return document


_PLAIN_TEXT = st.characters(codec="utf-8", exclude_characters="\0")


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to everything in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in inner for place in ((*path, key), *_places(item, (*path, key)))]


@st.composite
def broken(draw: st.DrawFn) -> Any:
    """A document of which some places hold something else, or nothing. It may still be valid."""
    document = copy.deepcopy(draw(documents()))  # parts of it are the same object in every document
    for _ in range(draw(st.integers(1, 3))):
        places = _places(document)
        if not places:
            break
        *way, last = draw(st.sampled_from(places))
        here: Any = document
        for key in way:
            here = here[key]
        if draw(st.booleans()):
            here[last] = draw(JSON)
        else:
            del here[last]
    return document
