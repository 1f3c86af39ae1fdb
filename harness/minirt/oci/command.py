"""The command line: parse, call the verb, turn an error into words and an exit status.

Errors go to standard error, and to ``--log`` as a line of level "error", where containerd's shim looks for them.
"""

from __future__ import annotations

import sys
import time

from harness.linux import lean as os
from harness.minirt.errors import MinirtError, UsageError
from harness.minirt.loading import load
from harness.minirt.oci.arguments import check_arguments, parse_options
from harness.minirt.oci.verbs import DEFAULT_ROOT, find_verb, global_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.minirt.oci.arguments import Words


class Context:
    """What every verb is given: the state root and the log."""

    __slots__ = ("_format", "_log", "debug", "root", "rootless", "systemd")

    def __init__(self, words: Words) -> None:
        self.root = os.path.abspath(words.value("root") or _default_root())
        log = words.value("log")
        self._log = os.path.abspath(log) if log else ""
        self._format = words.value("log-format", "text")
        self.debug = words.has("debug")
        self.systemd = words.has("systemd-cgroup")
        self.rootless = words.value("rootless", "auto")
        if self._format not in ("text", "json"):
            raise UsageError(f"unknown log-format {self._format!r}")
        if log:
            try:
                os.close(self._open_log())
            except OSError as error:
                raise UsageError(f"--log {log}: {os.strerror(error.errno or 0).lower()}") from None

    def _open_log(self) -> int:
        return os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def warn(self, message: str) -> None:
        """Tell of what is not as it was asked for, and no reason to stop."""
        self.log("warning", message)
        if self._log:
            self._tell(message)

    @staticmethod
    def _tell(message: str) -> None:
        sys.stderr.write(f"minirt: warning: {message}\n")

    def log(self, level: str, message: str) -> None:
        """One line into the log file. Without one, warnings go to standard error, and others nowhere."""
        if not self._log and level == "warning":
            self._tell(message)
        if not self._log or (level == "debug" and not self.debug):
            return
        from harness.minirt.container.document import render

        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self._format == "json":
            line = render({"level": level, "msg": message, "time": now})
        else:
            line = f'time="{now}" level={level} msg={render(message)}'
        try:
            fd = self._open_log()
        except OSError:
            return
        os.write(fd, f"{line}\n".encode(errors="replace"))
        os.close(fd)


def _default_root() -> str:
    """Where states are kept: a normal user's below their own $XDG_RUNTIME_DIR."""
    folder = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.geteuid() == 0:
        from harness.minirt.container.procfs import in_user_namespace

        # Inside of a user namespace this may be a normal user who is called root there.
        if not folder or os.environ.get("USER") == "root" or not in_user_namespace():
            return DEFAULT_ROOT
    if not folder:
        raise UsageError("XDG_RUNTIME_DIR is not set: --root has to say where the states of containers are kept")
    root = f"{folder}/minirt"
    os.makedirs(root, 0o700, exist_ok=True)
    os.chmod(root, 0o1700)  # sticky, else what is old in there may be cleared away (XDG Base Directory Specification)
    return root


def main(argv: Sequence[str]) -> int:
    """Run one command line (without the program's name); its exit status."""
    context = None
    try:
        words = parse_options(argv, global_options())
        if words.has("version"):
            from harness.minirt.oci.about import version_text

            sys.stdout.write(version_text())
            return 0
        if words.has("help") or not words.arguments or words.arguments[0] in ("help", "h"):
            return _help(words.arguments[1] if words.arguments[1:] else "")
        name, *rest = words.arguments
        verb = find_verb(name)
        if verb is None:
            raise UsageError(f"no verb is called {name!r}; minirt --help lists them")
        context = Context(words)
        # A command inside the container may look like options; only exec has one.
        options = parse_options(rest, verb.options, mixed=verb.most >= 0)
        if options.has("help"):
            return _help(name)
        check_arguments(verb, options)
        return _call(name, context, options)
    except UsageError as error:
        return _fail(context, str(error), 1)
    except MinirtError as error:
        return _fail(context, str(error), getattr(error, "exit_code", 1) if argv_is_exec(argv) else 1)
    except OSError as error:
        # Nothing that is known to happen; but whoever reads it shall see one line and not a trace.
        about = f": {os.fsdecode(error.filename)}" if error.filename else ""
        return _fail(context, f"{os.strerror(error.errno or 0).lower()}{about}", 1)


def _help(name: str) -> int:
    from harness.minirt.oci.helping import render_help, render_usage
    from harness.minirt.oci.verbs import all_verbs

    verb = find_verb(name)
    sys.stdout.write(render_usage(all_verbs(), global_options()) if verb is None else render_help(verb))
    return 0


def argv_is_exec(argv: Sequence[str]) -> bool:
    """Whether an error of the program itself is to become the exit status, as a shell's would."""
    return "exec" in argv


def _fail(context: Context | None, message: str, status: int) -> int:
    if context is not None:
        context.log("error", message)
    sys.stderr.write(f"minirt: {message}\n")
    return status


def _call(name: str, context: Context, words: Words) -> int:
    if name in ("create", "run"):
        load("harness.minirt.oci.creation")
        from harness.minirt.oci import creation

        return creation.create(context, words) if name == "create" else creation.run(context, words)
    if name == "exec":
        # Before the rest is loaded: it has this command start once more.
        from harness.minirt.container.sealing import seal

        seal()
        load("harness.minirt.oci.execution")
        from harness.minirt.oci import execution

        return execution.execute(context, words)
    if name in ("list", "ps"):
        from harness.minirt.oci import listing

        return listing.list_containers(context, words) if name == "list" else listing.list_processes(context, words)
    if name in ("features", "spec"):
        from harness.minirt.oci import about

        return about.print_features() if name == "features" else about.write_spec(words)
    if name == "update":
        from harness.minirt.oci import updating

        return updating.update(context, words)
    if name == "events":
        from harness.minirt.oci import events

        return events.print_events(context, words)
    if name in ("checkpoint", "restore"):
        from harness.minirt.oci.checkpointing import checkpoint, restore

        return checkpoint(context, words) if name == "checkpoint" else restore(context, words)
    load("harness.minirt.oci.lifecycle")
    from harness.minirt.oci import lifecycle

    return lifecycle.CALLS[name](context, words)
