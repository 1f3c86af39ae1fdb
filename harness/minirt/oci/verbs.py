"""The table of verbs and of global options: plain tuples, of which a command turns into records only what it is about.

An option is its name, help, metavar, short name, default and whether it repeats, a verb its name, help, arguments, options
and the least and the most number of arguments (see `Option` and `Verb`), the last of both left out where they are usual.
"""

from __future__ import annotations

from harness.minirt.oci.arguments import Option, Verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_ROOT = "/run/minirt/oci"

_GLOBAL: tuple[tuple[Any, ...], ...] = (
    ("root", "folder of the containers' states", "DIR", "", DEFAULT_ROOT),
    ("log", "file for log lines", "FILE"),
    ("log-format", "text or json", "FORMAT", "", "text"),
    ("debug", "log more"),
    ("systemd-cgroup", "let systemd make the cgroups: cgroupsPath is then SLICE:PREFIX:NAME"),
    ("rootless", "do without what needs root, cgroups foremost: true, false or auto", "MODE", "", "auto"),
    ("version", "print the version", "", "v"),
    ("help", "print this help", "", "h"),
)

_HELP = ("help", "print this help", "", "h")
_BUNDLE = ("bundle", "folder with config.json", "DIR", "b", ".")
_CONSOLE = ("console-socket", "socket to which the terminal is sent", "PATH")
_PID_FILE = ("pid-file", "file for the process's pid", "FILE")
_PIDFD_SOCKET = ("pidfd-socket", "socket to which a pidfd of the process is sent", "PATH")
_PRESERVE = ("preserve-fds", "hand on this many descriptors from 3 on", "N")
_CREATE = (
    _BUNDLE,
    _CONSOLE,
    _PID_FILE,
    ("no-pivot", "change the root without pivot_root"),
    ("no-new-keyring", "stay in the caller's session keyring"),
    _PRESERVE,
    _PIDFD_SOCKET,
)
_CRIU = (
    ("image-path", "folder of criu's images", "DIR", "", "./checkpoint"),
    ("work-path", "folder of criu's log and working files", "DIR"),
    ("tcp-established", "with TCP connections that are open"),
    ("ext-unix-sk", "with connections to unix sockets outside"),
    ("shell-job", "with processes of a terminal's session"),
    ("lazy-pages", "copy memory only when it is needed (userfaultfd)"),
    ("file-locks", "with locks on files"),
    ("manage-cgroups-mode", "soft, full, strict or ignore", "MODE", "", "soft"),
    ("empty-ns", "make this namespace anew: network", "KIND", "", "", True),
    ("auto-dedup", "drop pages from images that a later one has too"),
)
_ID = "CONTAINER-ID"

_VERBS: tuple[tuple[Any, ...], ...] = (
    ("create", "set a container up; its process waits for start", _ID, (*_CREATE, _HELP)),
    ("start", "execute the program of a created container", _ID, (_HELP,)),
    (
        "run",
        "create and start a container, and (without --detach) wait for its end and delete it",
        _ID,
        (
            *_CREATE,
            ("detach", "return as soon as it runs", "", "d"),
            ("keep", "do not delete it when it has ended"),
            ("no-subreaper", "do not adopt its orphans while it is waited for"),
            _HELP,
        ),
    ),
    ("state", "print a container's state as JSON", _ID, (_HELP,)),
    (
        "kill",
        "send a signal (default SIGTERM) to a container's first process",
        f"{_ID} [SIGNAL]",
        (("all", "to all its processes", "", "a"), _HELP),
        1,
        2,
    ),
    (
        "delete",
        "remove all that a stopped container owns",
        _ID,
        (("force", "kill it first if it runs; not to exist is no error", "", "f"), _HELP),
    ),
    ("pause", "freeze all processes of a container", _ID, (_HELP,)),
    ("resume", "let them go on", _ID, (_HELP,)),
    (
        "exec",
        "start one more process in a running container",
        f"{_ID} COMMAND [ARGUMENT]...",
        (
            ("process", "file with the process as JSON", "FILE", "p"),
            ("detach", "return as soon as it runs", "", "d"),
            ("tty", "with a terminal", "", "t"),
            ("cwd", "its working directory", "DIR"),
            ("env", "a variable, NAME=VALUE", "ENTRY", "e", "", True),
            ("user", "UID[:GID]", "USER", "u"),
            ("additional-gids", "one more group", "GID", "g", "", True),
            ("cap", "one more capability", "NAME", "c", "", True),
            ("no-new-privs", "without a way to new privileges"),
            ("ignore-paused", "also in a paused container"),
            _PID_FILE,
            _CONSOLE,
            _PRESERVE,
            _PIDFD_SOCKET,
            ("cgroup", "in a cgroup below the container's", "[CONTROLLER,...:]PATH", "", "", True),
            ("apparmor", "AppArmor profile", "PROFILE"),
            ("process-label", "SELinux label", "LABEL"),
            _HELP,
        ),
        1,
        -1,
    ),
    (
        "list",
        "print all containers of the root",
        "",
        (
            ("format", "table or json", "FORMAT", "f", "table"),
            ("quiet", "ids only", "", "q"),
            _HELP,
        ),
        0,
        0,
    ),
    (
        "ps",
        "print the processes of a container",
        f"{_ID} [OPTION OF ps]...",
        (("format", "table or json", "FORMAT", "f", "table"), _HELP),
        1,
        -1,
    ),
    (
        "update",
        "change the limits of a container; all options, or none if one is refused",
        _ID,
        (
            ("resources", "file with linux.resources as JSON, - is standard input; the rest is ignored", "FILE", "r"),
            ("blkio-weight", "weight of its block I/O, 10 to 1000", "WEIGHT"),
            ("cpu-period", "period of the CPU quota in microseconds", "US"),
            ("cpu-quota", "CPU time it may use in a period, -1: no limit", "US"),
            ("cpu-burst", "CPU time it may save up for later", "US"),
            ("cpu-share", "its weight beside other containers", "SHARES"),
            ("cpu-rt-period", "period of the realtime quota in microseconds", "US"),
            ("cpu-rt-runtime", "realtime CPU time it may use in a period", "US"),
            ("cpu-idle", "1: only when nobody else wants the CPU", "0|1"),
            ("cpuset-cpus", "CPUs it may use", "LIST"),
            ("cpuset-mems", "memory nodes it may use", "LIST"),
            ("memory", "memory it may use, such as 64M; -1: no limit", "BYTES"),
            ("memory-reservation", "memory it gives back last", "BYTES"),
            ("memory-swap", "memory and swap together", "BYTES"),
            ("kernel-memory", "ignored", "BYTES"),
            ("kernel-memory-tcp", "ignored", "BYTES"),
            ("pids-limit", "processes and threads it may have; -1: no limit", "N"),
            ("l3-cache-schema", "L3 cache schema of resctrl", "SCHEMA"),
            ("mem-bw-schema", "memory bandwidth schema of resctrl", "SCHEMA"),
            _HELP,
        ),
    ),
    (
        "events",
        "print what a container uses and when it is out of memory, as lines of JSON, until it ends",
        _ID,
        (
            ("interval", "time between figures, such as 500ms or 1m", "TIME", "", "5s"),
            ("stats", "print the figures once and end"),
            _HELP,
        ),
    ),
    (
        "checkpoint",
        "write the processes of a running container into files (criu), and end them",
        _ID,
        (
            *_CRIU,
            ("parent-path", "images of a --pre-dump, as a path from the new ones", "DIR"),
            ("leave-running", "let it go on"),
            ("tcp-skip-in-flight", "without TCP connections that are just being opened"),
            ("link-remap", "link files back that were deleted"),
            ("pre-dump", "write memory only, and let it go on"),
            ("status-fd", "descriptor that is told when --lazy-pages is ready", "N", "", "-1"),
            ("page-server", "send the memory there", "ADDRESS:PORT"),
            _HELP,
        ),
    ),
    (
        "restore",
        "let a container go on from a checkpoint",
        _ID,
        (
            *_CRIU,
            _BUNDLE,
            _CONSOLE,
            _PID_FILE,
            ("detach", "return as soon as it runs", "", "d"),
            ("no-pivot", "change the root without pivot_root"),
            ("no-subreaper", "do not adopt its orphans while it is waited for"),
            ("lsm-profile", "security profile, TYPE:NAME", "PROFILE"),
            ("lsm-mount-context", "SELinux context of its mounts", "CONTEXT"),
            _HELP,
        ),
    ),
    ("features", "print what this runtime can do, as JSON", "", (_HELP,), 0, 0),
    (
        "spec",
        "write a config.json to start from",
        "",
        (_BUNDLE, ("rootless", "for a user who is not root"), _HELP),
        0,
        0,
    ),
    ("serve", "be a CRI daemon", "", (), 0, -1),
    ("shutdown", "end a CRI daemon's containers and its supervisor", "", (), 0, -1),
)


def global_options() -> tuple[Option, ...]:
    """Those that stand before the verb."""
    return _options(_GLOBAL)


def find_verb(name: str) -> Verb | None:
    """The verb of that name."""
    for entry in _VERBS:
        if entry[0] == name:
            _, help, arguments, options, *counts = entry
            return Verb(name, help, arguments, _options(options), *counts)
    return None


def all_verbs() -> list[Verb]:
    """In the order in which they are told."""
    return [verb for entry in _VERBS if (verb := find_verb(entry[0])) is not None]


def _options(entries: tuple[tuple[Any, ...], ...]) -> tuple[Option, ...]:
    return tuple([Option(*entry) for entry in entries])
