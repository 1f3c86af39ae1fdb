"""The table of verbs and of global options."""

from __future__ import annotations

from harness.minirt.oci.arguments import Option, Verb

DEFAULT_ROOT = "/run/minirt/oci"

GLOBAL_OPTIONS = (
    Option("root", "folder of the containers' states", "DIR", default=DEFAULT_ROOT),
    Option("log", "file for log lines", "FILE"),
    Option("log-format", "text or json", "FORMAT", default="text"),
    Option("debug", "log more"),
    Option("systemd-cgroup", "let systemd make the cgroups (not supported)"),
    Option("rootless", "run without root: true, false, auto (ignored)", "MODE"),
    Option("version", "print the version", short="v"),
    Option("help", "print this help", short="h"),
)

_HELP = Option("help", "print this help", short="h")
_BUNDLE = Option("bundle", "folder with config.json", "DIR", "b", ".")
_CONSOLE = Option("console-socket", "socket to which the terminal is sent", "PATH")
_PID_FILE = Option("pid-file", "file for the process's pid", "FILE")
_PRESERVE = Option("preserve-fds", "hand on this many descriptors from 3 on", "N")
_CREATE = (
    _BUNDLE,
    _CONSOLE,
    _PID_FILE,
    Option("no-pivot", "change the root without pivot_root"),
    Option("no-new-keyring", "stay in the caller's session keyring"),
    _PRESERVE,
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
        _ID,
        (Option("format", "table or json", "FORMAT", "f", "table"), _HELP),
        1,
        -1,
    ),
    Verb("features", "print what this runtime can do, as JSON", "", (_HELP,), 0, 0),
    Verb("spec", "write a config.json to start from", "", (_BUNDLE, _HELP), 0, 0),
    Verb("serve", "be a CRI daemon", "", (), 0, -1),
    Verb("shutdown", "end a CRI daemon's containers and its supervisor", "", (), 0, -1),
)

VERBS_BY_NAME = {verb.name: verb for verb in VERBS}
