"""The configuration of crictl: which engine it talks to, and whether that one answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.command import Runner
from harness.errors import CommandError, MachineError, UsageError

CONFIG = Path("/etc/crictl.yaml")
KEEP_SUFFIX = ".before-seatrial"
HEADER = "# written by seatrial setup\n"
"""By this line a file of ours is known: only one of somebody else's is kept."""

SOCKETS = (
    Path("/run/containerd/containerd.sock"),
    Path("/run/crio/crio.sock"),
    Path("/run/cri-dockerd.sock"),
)
"""Where CRI engines listen when a machine runs one as its own service; the first is crictl's usual one."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a CRI engine: ``unix:///path``."""

    socket: Path

    def __str__(self) -> str:
        return f"unix://{self.socket}"


def parse_endpoint(text: str) -> Endpoint:
    """Raises `UsageError` unless `text` is ``unix:///absolute/path``."""
    path = text.removeprefix("unix://")
    if path == text or not path.startswith("/"):
        raise UsageError(f"{text!r} is not the address of a CRI engine: write unix:///absolute/path.sock")
    return Endpoint(Path(path))


def likely_endpoint() -> Endpoint:
    """The engine that listens on this machine, or else the one that most often would."""
    return Endpoint(next((path for path in SOCKETS if path.is_socket()), SOCKETS[0]))


def render_config(endpoint: Endpoint) -> str:
    """The text of a ``crictl.yaml`` for `endpoint`."""
    import yaml

    settings = {"runtime-endpoint": str(endpoint), "image-endpoint": str(endpoint), "timeout": 10, "debug": False}
    return HEADER + str(yaml.safe_dump(settings, sort_keys=False))


def parse_config(text: str) -> dict[str, Any]:
    """The settings in the text of a ``crictl.yaml``. Raises `ValueError`."""
    import yaml

    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    if not isinstance(settings, dict):
        raise ValueError("it is not a table of settings")  # noqa: TRY004
    return settings


def read_endpoint(path: Path = CONFIG) -> str:
    """The endpoint that a configuration names; empty where there is no file or it names none.

    Raises `MachineError` for a file that cannot be read.
    """
    try:
        return str(parse_config(path.read_text()).get("runtime-endpoint", ""))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise MachineError(f"{path} cannot be read: {error}") from None


def is_of_others(path: Path) -> bool:
    """Whether there is a configuration that was not written here. Raises `OSError`."""
    return path.exists() and not path.read_text().startswith(HEADER)


def write_config(endpoint: Endpoint, path: Path = CONFIG) -> Path | None:
    """Make `endpoint` the one that `path` names. A file that was there is kept, once, and its new path returned."""
    kept = None
    try:
        if is_of_others(path):
            kept = path.with_name(path.name + KEEP_SUFFIX)
            if kept.exists():
                kept = None
            else:
                kept.write_bytes(path.read_bytes())
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(render_config(endpoint))
        fresh.replace(path)
    except OSError as error:
        raise MachineError(f"{path} cannot be written: {error.strerror}") from None
    return kept


def ask_engine(runner: Runner, crictl: Path, endpoint: Endpoint) -> str:
    """What ``crictl info`` says of the engine, in words: ``RuntimeReady, NetworkReady``.

    Raises `MachineError` where nothing listens, or no answer comes that can be understood.
    """
    if not endpoint.socket.is_socket():
        raise MachineError(f"nothing listens at {endpoint} yet", f"start the engine, then run {crictl.name} info")
    try:
        answer = runner.run([str(crictl), "--runtime-endpoint", str(endpoint), "info"], timeout_s=20).check()
        return conditions_of(answer.text)
    except CommandError as error:
        last = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise MachineError(f"crictl info at {endpoint} failed: {last}") from None
    except ValueError as error:
        raise MachineError(f"crictl info at {endpoint} gave no status: {error}") from None


def conditions_of(text: str) -> str:
    """The conditions in the JSON of ``crictl info``: names, and the reason of each that is false. Raises `ValueError`."""
    data = json.loads(text)
    conditions = data.get("status", {}).get("conditions") if isinstance(data, dict) else None
    if not isinstance(conditions, list):
        raise ValueError("there are no conditions in it")  # noqa: TRY004
    words = []
    for condition in conditions:
        name = condition.get("type", "?")
        words.append(
            name if condition.get("status") else f"not {name} ({condition.get('reason') or 'no reason given'})"
        )
    return ", ".join(words)
