"""The command ``minirt``: ``serve`` and ``shutdown`` are the CRI daemon's, every other verb the OCI runtime's."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line of this process; its exit status."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["serve"]:
        from harness.minirt.cri.serve import main as serve

        return serve(arguments[1:])
    if arguments[:1] == ["shutdown"]:
        from harness.minirt.cri.serve import shutdown_main

        return shutdown_main(arguments[1:])
    from harness.minirt.oci.command import main as oci

    return oci(arguments)


if __name__ == "__main__":
    sys.exit(main())
