"""The last word on a command: a ``Status`` of the Kubernetes API, as JSON (protocols v4 and v5), or text (before them)."""

from __future__ import annotations

import json
from typing import Any, Final

SUCCESS: Final[dict[str, Any]] = {"metadata": {}, "status": "Success"}


def of_exit(code: int) -> dict[str, Any]:
    """A command has ended by itself."""
    if not code:
        return SUCCESS
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def of_failure(text: str) -> dict[str, Any]:
    """A command could not be run."""
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"Internal error occurred: {text}",
        "reason": "InternalError",
        "details": {"causes": [{"message": text}]},
        "code": 500,
    }


def render(status: dict[str, Any], protocol: str) -> bytes:
    """What goes over the error channel; nothing where all is well and the protocol has no word for that."""
    if protocol.startswith(("v4.", "v5.")):
        return json.dumps(status).encode()
    return str(status.get("message", "")).encode()
