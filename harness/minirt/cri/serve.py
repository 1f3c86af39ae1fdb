"""``minirt serve`` and ``minirt shutdown``.

Nothing heavy is imported here before the supervisor has been forked: what this module loads, that process holds for ever.
"""

from __future__ import annotations

import os
import sys

from harness.minirt.errors import MinirtError, Unavailable, UsageError
from harness.minirt.supervisor.start import Fork

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.minirt.cri.options import Options


def main(argv: Sequence[str]) -> int:
    """Serve CRI in the foreground; one line on stdout when ready. The exit status: 2 for wrong words, 1 where it cannot serve."""
    fork = Fork()
    supervised = False
    try:
        from harness.minirt.cri.options import parse_options

        options = parse_options(argv)
        for folder in (options.root, options.state):
            os.makedirs(folder, 0o711, exist_ok=True)
        supervised = _supervise(options, fork)
        from harness.minirt.cri.daemon import run

        return run(options, fork.pid if supervised else 0)
    except UsageError as error:
        print(f"minirt serve: {error}", file=sys.stderr)
        return 2
    except (MinirtError, OSError) as error:
        print(f"minirt serve: {error}", file=sys.stderr)
        return 1
    finally:
        if not supervised:
            fork.dismiss()


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


def shutdown_main(argv: Sequence[str]) -> int:
    """End all containers, pods and the supervisor of a state folder; the exit status. The daemon, if any, is to be stopped first."""
    try:
        from harness.minirt.cri.options import parse_options
        from harness.minirt.cri.shutdown import shut_down

        shut_down(parse_options(argv))
    except UsageError as error:
        print(f"minirt shutdown: {error}", file=sys.stderr)
        return 2
    except (MinirtError, OSError) as error:
        print(f"minirt shutdown: {error}", file=sys.stderr)
        return 1
    return 0


__all__ = ["main", "shutdown_main"]
