"""The table of verbs and of global options."""

from __future__ import annotations

from harness.minirt.oci.arguments import Option, Verb

DEFAULT_ROOT = "/run/minirt/oci"

GLOBAL_OPTIONS = (
    Option("root", "folder of the containers' states", "DIR", default=DEFAULT_ROOT),
    Option("log", "file for log lines", "FILE"),
    Option("log-format", "text or json", "FORMAT", default="text"),
    Option("debug", "log more"),
    Option("systemd-cgroup", "let systemd make the cgroups: cgroupsPath is then SLICE:PREFIX:NAME"),
    Option("rootless", "do without what needs root, cgroups foremost: true, false or auto", "MODE", default="auto"),
    Option("version", "print the version", short="v"),
    Option("help", "print this help", short="h"),
)

_HELP = Option("help", "print this help", short="h")
_BUNDLE = Option("bundle", "folder with config.json", "DIR", "b", ".")
_CONSOLE = Option("console-socket", "socket to which the terminal is sent", "PATH")
_PID_FILE = Option("pid-file", "file for the process's pid", "FILE")
_PIDFD_SOCKET = Option("pidfd-socket", "socket to which a pidfd of the process is sent", "PATH")
_PRESERVE = Option("preserve-fds", "hand on this many descriptors from 3 on", "N")
_CREATE = (
    _BUNDLE,
    _CONSOLE,
    _PID_FILE,
    Option("no-pivot", "change the root without pivot_root"),
    Option("no-new-keyring", "stay in the caller's session keyring"),
    _PRESERVE,
    _PIDFD_SOCKET,
)
_CRIU = (
    Option("image-path", "folder of criu's images", "DIR", default="./checkpoint"),
    Option("work-path", "folder of criu's log and working files", "DIR"),
    Option("tcp-established", "with TCP connections that are open"),
    Option("ext-unix-sk", "with connections to unix sockets outside"),
    Option("shell-job", "with processes of a terminal's session"),
    Option("lazy-pages", "copy memory only when it is needed (userfaultfd)"),
    Option("file-locks", "with locks on files"),
    Option("manage-cgroups-mode", "soft, full, strict or ignore", "MODE", default="soft"),
    Option("empty-ns", "make this namespace anew: network", "KIND", repeats=True),
    Option("auto-dedup", "drop pages from images that a later one has too"),
)
_ID = "CONTAINER-ID"

VERBS = (
    Verb("create", "set a container up; its process waits for start", _ID, (*_CREATE, _HELP)),
    Verb("start", "execute the program of a created container", _ID, (_HELP,)),
    Verb(
        "run",
        "create and start a container, and (without --detach) wait for its end and delete it",
        _ID,
        (
            *_CREATE,
            Option("detach", "return as soon as it runs", short="d"),
            Option("keep", "do not delete it when it has ended"),
            Option("no-subreaper", "do not adopt its orphans while it is waited for"),
            _HELP,
        ),
    ),
    Verb("state", "print a container's state as JSON", _ID, (_HELP,)),
    Verb(
        "kill",
        "send a signal (default SIGTERM) to a container's first process",
        f"{_ID} [SIGNAL]",
        (Option("all", "to all its processes", short="a"), _HELP),
        1,
        2,
    ),
    Verb(
        "delete",
        "remove all that a stopped container owns",
        _ID,
        (Option("force", "kill it first if it runs; not to exist is no error", short="f"), _HELP),
    ),
    Verb("pause", "freeze all processes of a container", _ID, (_HELP,)),
    Verb("resume", "let them go on", _ID, (_HELP,)),
    Verb(
        "exec",
        "start one more process in a running container",
        f"{_ID} COMMAND [ARGUMENT]...",
        (
            Option("process", "file with the process as JSON", "FILE", "p"),
            Option("detach", "return as soon as it runs", short="d"),
            Option("tty", "with a terminal", short="t"),
            Option("cwd", "its working directory", "DIR"),
            Option("env", "a variable, NAME=VALUE", "ENTRY", "e", repeats=True),
            Option("user", "UID[:GID]", "USER", "u"),
            Option("additional-gids", "one more group", "GID", "g", repeats=True),
            Option("cap", "one more capability", "NAME", "c", repeats=True),
            Option("no-new-privs", "without a way to new privileges"),
            Option("ignore-paused", "also in a paused container"),
            _PID_FILE,
            _CONSOLE,
            _PRESERVE,
            _PIDFD_SOCKET,
            Option("cgroup", "in a cgroup below the container's", "[CONTROLLER,...:]PATH", repeats=True),
            Option("apparmor", "AppArmor profile", "PROFILE"),
            Option("process-label", "SELinux label", "LABEL"),
            _HELP,
        ),
        1,
        -1,
    ),
    Verb(
        "list",
        "print all containers of the root",
        "",
        (
            Option("format", "table or json", "FORMAT", "f", "table"),
            Option("quiet", "ids only", short="q"),
            _HELP,
        ),
        0,
        0,
    ),
    Verb(
        "ps",
        "print the processes of a container",
        f"{_ID} [OPTION OF ps]...",
        (Option("format", "table or json", "FORMAT", "f", "table"), _HELP),
        1,
        -1,
    ),
    Verb(
        "update",
        "change the limits of a container; all options, or none if one is refused",
        _ID,
        (
            Option(
                "resources", "file with linux.resources as JSON, - is standard input; the rest is ignored", "FILE", "r"
            ),
            Option("blkio-weight", "weight of its block I/O, 10 to 1000", "WEIGHT"),
            Option("cpu-period", "period of the CPU quota in microseconds", "US"),
            Option("cpu-quota", "CPU time it may use in a period, -1: no limit", "US"),
            Option("cpu-burst", "CPU time it may save up for later", "US"),
            Option("cpu-share", "its weight beside other containers", "SHARES"),
            Option("cpu-rt-period", "period of the realtime quota in microseconds", "US"),
            Option("cpu-rt-runtime", "realtime CPU time it may use in a period", "US"),
            Option("cpu-idle", "1: only when nobody else wants the CPU", "0|1"),
            Option("cpuset-cpus", "CPUs it may use", "LIST"),
            Option("cpuset-mems", "memory nodes it may use", "LIST"),
            Option("memory", "memory it may use, such as 64M; -1: no limit", "BYTES"),
            Option("memory-reservation", "memory it gives back last", "BYTES"),
            Option("memory-swap", "memory and swap together", "BYTES"),
            Option("kernel-memory", "ignored", "BYTES"),
            Option("kernel-memory-tcp", "ignored", "BYTES"),
            Option("pids-limit", "processes and threads it may have; -1: no limit", "N"),
            Option("l3-cache-schema", "L3 cache schema of resctrl", "SCHEMA"),
            Option("mem-bw-schema", "memory bandwidth schema of resctrl", "SCHEMA"),
            _HELP,
        ),
    ),
    Verb(
        "events",
        "print what a container uses and when it is out of memory, as lines of JSON, until it ends",
        _ID,
        (
            Option("interval", "time between figures, such as 500ms or 1m", "TIME", default="5s"),
            Option("stats", "print the figures once and end"),
            _HELP,
        ),
    ),
    Verb(
        "checkpoint",
        "write the processes of a running container into files (criu), and end them",
        _ID,
        (
            *_CRIU,
            Option("parent-path", "images of a --pre-dump, as a path from the new ones", "DIR"),
            Option("leave-running", "let it go on"),
            Option("tcp-skip-in-flight", "without TCP connections that are just being opened"),
            Option("link-remap", "link files back that were deleted"),
            Option("pre-dump", "write memory only, and let it go on"),
            Option("status-fd", "descriptor that is told when --lazy-pages is ready", "N", default="-1"),
            Option("page-server", "send the memory there", "ADDRESS:PORT"),
            _HELP,
        ),
    ),
    Verb(
        "restore",
        "let a container go on from a checkpoint",
        _ID,
        (
            *_CRIU,
            _BUNDLE,
            _CONSOLE,
            _PID_FILE,
            Option("detach", "return as soon as it runs", short="d"),
            Option("no-pivot", "change the root without pivot_root"),
            Option("no-subreaper", "do not adopt its orphans while it is waited for"),
            Option("lsm-profile", "security profile, TYPE:NAME", "PROFILE"),
            Option("lsm-mount-context", "SELinux context of its mounts", "CONTEXT"),
            _HELP,
        ),
    ),
    Verb("features", "print what this runtime can do, as JSON", "", (_HELP,), 0, 0),
    Verb(
        "spec",
        "write a config.json to start from",
        "",
        (_BUNDLE, Option("rootless", "for a user who is not root"), _HELP),
        0,
        0,
    ),
    Verb("serve", "be a CRI daemon", "", (), 0, -1),
    Verb("shutdown", "end a CRI daemon's containers and its supervisor", "", (), 0, -1),
)

VERBS_BY_NAME = {verb.name: verb for verb in VERBS}
