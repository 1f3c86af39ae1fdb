"""``process`` of a config.json, or alone, as an exec has it: what is executed, as whom, and with what rights."""

from __future__ import annotations

from harness.linux.capabilities import BITS
from harness.minirt.container.reader import Reader
from harness.minirt.container.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from harness.minirt.container.scheduling import Affinity, Scheduler

RLIMITS = {
    name: number
    for number, name in enumerate(
        (
            "RLIMIT_CPU",
            "RLIMIT_FSIZE",
            "RLIMIT_DATA",
            "RLIMIT_STACK",
            "RLIMIT_CORE",
            "RLIMIT_RSS",
            "RLIMIT_NPROC",
            "RLIMIT_NOFILE",
            "RLIMIT_MEMLOCK",
            "RLIMIT_AS",
            "RLIMIT_LOCKS",
            "RLIMIT_SIGPENDING",
            "RLIMIT_MSGQUEUE",
            "RLIMIT_NICE",
            "RLIMIT_RTPRIO",
            "RLIMIT_RTTIME",
        )
    )
}


class User(Record):
    uid: int = 0
    gid: int = 0
    umask: int | None = None
    groups: tuple[int, ...] = ()


class Capabilities(Record):
    """Bit masks of the five sets."""

    bounding: int = 0
    effective: int = 0
    permitted: int = 0
    inheritable: int = 0
    ambient: int = 0


class Rlimit(Record):
    resource: int
    soft: int
    hard: int


class Process(Record):
    """What is executed. `capabilities` None: those of the caller stay."""

    args: tuple[str, ...]
    cwd: str
    env: tuple[str, ...] = ()
    user: User = User()
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    oom_score_adj: int | None = None
    terminal: bool = False
    console_size: tuple[int, int] | None = None
    """rows, columns"""
    apparmor: str = ""
    selinux: str = ""
    scheduler: Scheduler | None = None
    io_priority: int | None = None
    affinity: Affinity | None = None
    """of an exec; the container's first process has none"""
    warnings: tuple[str, ...] = ()
    """what it asks for and cannot have, where the specification wants that told and not refused"""


def parse_process(entry: Reader) -> Process:
    """``process``, of a config.json or alone (as `exec --process` has it)."""
    args = entry.texts("args")
    if not args or not args[0]:
        raise entry.fail("args", "needs at least one word")
    cwd = entry.text("cwd")
    if not cwd.startswith("/"):
        raise entry.fail("cwd", f"{cwd!r} is not an absolute path" if cwd else "is missing")
    user = entry.object("user") or Reader({}, entry.at("user"))
    most = (1 << 32) - 2
    terminal = entry.flag("terminal")
    # "Runtimes MUST ignore consoleSize if terminal is false or unset": also one that is wrong.
    size = entry.object("consoleSize") if terminal else None
    scheduler, io_priority, affinity = (entry.object(key) for key in ("scheduler", "ioPriority", "execCPUAffinity"))
    if scheduler is not None or io_priority is not None or affinity is not None:
        from harness.minirt.container import scheduling
    capabilities, unknown = _capabilities(entry)
    return Process(
        args=args,
        cwd=cwd,
        env=parse_environment(entry),
        user=User(
            user.count("uid", most=most),
            user.count("gid", most=most),
            user.number("umask", least=0, most=0o777),
            user.numbers("additionalGids", most),
        ),
        capabilities=capabilities,
        rlimits=_rlimits(entry),
        no_new_privileges=entry.flag("noNewPrivileges"),
        oom_score_adj=entry.number("oomScoreAdj", least=-1000, most=1000),
        terminal=terminal,
        console_size=None if size is None else (size.count("height", most=65535), size.count("width", most=65535)),
        apparmor=entry.text("apparmorProfile"),
        selinux=entry.text("selinuxLabel"),
        scheduler=None if scheduler is None else scheduling.parse_scheduler(scheduler),
        io_priority=None if io_priority is None else scheduling.parse_io_priority(io_priority),
        affinity=None if affinity is None else scheduling.parse_affinity(affinity),
        warnings=tuple([f"{entry.path}.capabilities: {name} is not known, and ignored" for name in unknown]),
    )


def parse_environment(process: Reader) -> tuple[str, ...]:
    """``env``, each of whose entries has a name and a value, as all runtimes demand it."""
    entries = process.texts("env")
    for index, entry in enumerate(entries):
        if entry.find("=") < 1:
            raise process.fail(f"env[{index}]", f"{entry!r} is not of the form NAME=VALUE")
    return entries


def _capabilities(process: Reader) -> tuple[Capabilities | None, tuple[str, ...]]:
    """The sets, and the names that nobody knows: they are left out, and have to be warned of."""
    entry = process.object("capabilities")
    if entry is None:
        return None, ()
    masks, unknown = {}, []
    for name in ("bounding", "effective", "permitted", "inheritable", "ambient"):
        mask = 0
        for word in entry.texts(name):
            if word in BITS:
                mask |= 1 << BITS[word]
            else:
                unknown.append(word)
        masks[name] = mask
    return Capabilities(**masks), tuple(dict.fromkeys(unknown))


def _rlimits(process: Reader) -> tuple[Rlimit, ...]:
    def one(entry: Reader) -> Rlimit:
        resource = entry.choice("type", RLIMITS)
        soft, hard = entry.count("soft", most=(1 << 64) - 1), entry.count("hard", most=(1 << 64) - 1)
        if soft > hard:
            raise entry.fail("soft", f"{soft} is above the hard limit {hard}")
        return Rlimit(resource, soft, hard)

    limits = process.list("rlimits", one)
    seen: set[int] = set()
    for index, limit in enumerate(limits):
        if limit.resource in seen:
            raise process.fail(f"rlimits[{index}].type", "stands there twice")
        seen.add(limit.resource)
    return limits
