"""``minirt serve`` and ``minirt shutdown``.

Nothing heavy is imported here before the supervisor has been forked: what this module loads, that process holds for ever.
"""

from __future__ import annotations

import os
import sys

from harness.minirt.container.sealing import seal
from harness.minirt.errors import MinirtError, Unavailable, UsageError, WrongState
from harness.minirt.supervisor.start import Fork

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.minirt.cri.options import Options

_FULL = (28, 122)
"""ENOSPC, EDQUOT"""
_SERVE = """\
Serve CRI in the foreground, for crictl, kubelet and whoever else speaks it. One line on stdout says when it is ready.
SIGTERM ends it and leaves containers running: the next start finds them again. `minirt shutdown` ends everything.
Exit status: 0 ended by a signal, 1 cannot serve, 2 wrong options."""
_SHUTDOWN = """\
End the daemon of these folders, every container, every pod with its network, and the supervisor. Images stay.
May be done again. Give it the options that the daemon was started with.
Exit status: 0 nothing runs any more, 1 something could not be ended, 2 wrong options."""


def main(argv: Sequence[str]) -> int:
    """Serve CRI; the exit status."""
    if _asks_for_help(argv, "serve", _SERVE):
        return 0
    seal()
    fork = Fork()
    supervised = False

    def serve() -> int:
        nonlocal supervised
        _find_libraries()
        from pathlib import Path

        from harness.minirt.cri.lock import make_way, only_one
        from harness.minirt.cri.options import parse_options

        options = parse_options(argv)
        for name in ("root", "state"):
            _make_writable(name, getattr(options, name))
        with only_one(Path(options.state)), only_one(Path(options.root)):
            make_way(options.socket)
            supervised = _supervise(options, fork)
            # What grpc says by itself has a form of its own; the log has one form.
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")
            from harness.minirt.cri.footprint import import_grpc

            import_grpc()
            from harness.minirt.cri.daemon import run

            return run(options, fork.pid if supervised else 0)

    try:
        return _status("serve", serve)
    finally:
        if not supervised:
            fork.dismiss()


def shutdown_main(argv: Sequence[str]) -> int:
    """End all containers, pods and the supervisor of a state folder, and say what was ended; the exit status."""
    if _asks_for_help(argv, "shutdown", _SHUTDOWN):
        return 0

    def shut_down() -> int:
        _find_libraries()
        from harness.minirt.cri import shutdown
        from harness.minirt.cri.options import parse_options

        print(shutdown.shut_down(parse_options(argv)))
        return 0

    return _status("shutdown", shut_down)


def _find_libraries() -> None:
    """Let all that is installed be found: the command starts Python without that (-S), for the sake of the other verbs."""
    if sys.flags.no_site:
        import site

        site.main()


def _asks_for_help(argv: Sequence[str], command: str, does: str) -> bool:
    if not {"--help", "-h"}.intersection(argv):
        return False
    _find_libraries()
    from harness.minirt.cri.options import render_help

    print(render_help(command, does), end="")
    return True


def _status(command: str, act: Callable[[], int]) -> int:
    try:
        return act()
    except UsageError as error:
        print(f"minirt {command}: {error} (minirt {command} --help tells more)", file=sys.stderr)
        return 2
    except (MinirtError, OSError) as error:
        print(f"minirt {command}: {error}", file=sys.stderr)
        return 1


def _make_writable(name: str, folder: str) -> None:
    """See to it that a folder is there and can be written to, before anything is started. Raises `WrongState`."""
    probe = f"{folder}/.writable.{os.getpid()}"
    try:
        os.makedirs(folder, 0o711, exist_ok=True)
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.unlink(probe)
    except OSError as error:
        if error.errno in _FULL:  # what runs is looked after all the same, and something can be removed
            return
        raise WrongState(f"--{name} {folder}: cannot be written to: {os.strerror(error.errno or 0).lower()}") from error


def _supervise(options: Options, fork: Fork) -> bool:
    """See to it that there is a supervisor: the one that an earlier daemon left, or `fork`; whether it is `fork`."""
    if _is_alive(options):
        return False
    problem = fork.become(options.state)
    if problem and not _is_alive(options):  # another daemon may just have been faster
        raise Unavailable(problem)
    return True


def _is_alive(options: Options) -> bool:
    from harness.minirt.supervisor.client import Supervisor

    supervisor = Supervisor(options.supervisor_socket)
    try:
        supervisor.call("hello")
    except Unavailable:
        return False
    finally:
        supervisor.close()
    return True


__all__ = ["main", "shutdown_main"]
