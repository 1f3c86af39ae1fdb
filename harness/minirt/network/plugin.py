"""Running one CNI plugin: a program that reads a configuration, does one thing, and writes its result or its complaint."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.minirt.errors import MinirtError

_TIMEOUT_S = 120.0
_LONGEST_COMPLAINT = 1000


class NetworkError(MinirtError):
    """A plugin failed. `plugin` is its type, the text what it said."""

    def __init__(self, plugin: str, text: str) -> None:
        super().__init__(f"network plugin {plugin!r}: {text}")
        self.plugin = plugin


def run_plugin(
    program: Path, command: str, configuration: Mapping[str, Any], environment: Mapping[str, str]
) -> Mapping[str, Any]:
    """What the plugin answers to `command`; empty where it answers nothing. Raises `NetworkError`."""
    kind = program.name
    try:
        done = subprocess.run(
            [str(program)],
            input=json.dumps(configuration).encode(),
            capture_output=True,
            env={**environment, "CNI_COMMAND": command},
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NetworkError(kind, f"{command} did not end within {_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise NetworkError(kind, f"cannot be run: {error}") from error
    if done.returncode:
        raise NetworkError(kind, f"{command} failed: {complaint(done.returncode, done.stdout, done.stderr)}")
    if not done.stdout.strip():
        return {}
    try:
        result = json.loads(done.stdout)
    except ValueError as error:
        raise NetworkError(kind, f"its answer is not JSON: {error}") from error
    return result if isinstance(result, dict) else {}


def complaint(status: int, stdout: bytes, stderr: bytes) -> str:
    """What a plugin that failed says: an error object on its stdout, by the specification; else whatever it wrote."""
    with contextlib.suppress(ValueError, AttributeError):
        content = json.loads(stdout)
        text = ": ".join(str(content[key]) for key in ("msg", "details") if content.get(key))
        if text:
            return text
    text = (stdout + stderr).decode(errors="replace").strip()[-_LONGEST_COMPLAINT:]
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return f"{text} ({how})" if text else f"it did not say why ({how})"
