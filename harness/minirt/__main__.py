"""The command ``minirt``: ``serve`` and ``shutdown`` are the CRI daemon's, every other verb the OCI runtime's.

``supervise`` is for the daemon alone: its next supervisor, when the one that it was born with has been killed.
"""

from __future__ import annotations

import gc
import sys

from harness.minirt.loading import load, remember


def main() -> int:
    """Run the command line of this process; its exit status."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["serve"]:
        from harness.minirt.cri.serve import main as serve

        return serve(arguments[1:])
    if arguments[:1] == ["shutdown"]:
        from harness.minirt.cri.serve import shutdown_main

        return shutdown_main(arguments[1:])
    if arguments[:1] == ["supervise"] and len(arguments) == 3:
        from harness.minirt.supervisor.start import serve_alone

        return serve_alone(arguments[1], int(arguments[2]))
    # A command ends before a collection would pay; one that stays turns it on again.
    gc.disable()
    load("harness.minirt.oci.command")
    from harness.linux import lean as os
    from harness.minirt.oci.command import main as oci

    if sys.stdout is None or sys.stderr is None:  # whoever called us has closed them
        sys.stdout, sys.stderr = (stream or open("/dev/null", "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    status = oci(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    remember()
    # Tearing the interpreter down in good order would take longer than the work: nothing is left that needs it.
    return os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
