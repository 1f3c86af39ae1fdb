"""The subjects and suites that a command line and a ``seatrial.toml`` choose."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from harness import paths
from harness.errors import BadConfig, MachineError, UsageError
from harness.model.config import Config, parse_config
from harness.model.subject import Subject, parse_subject


def config_path(wanted: Path | None) -> Path | None:
    """The file `wanted`, by default ``seatrial.toml`` where there is one."""
    default = Path("seatrial.toml")
    return wanted or (default if default.exists() else None)


def read_config(wanted: Path | None) -> Config:
    """What `config_path` says. Raises `BadConfig`."""
    path = config_path(wanted)
    if path is None:
        return Config()
    try:
        return parse_config(path.read_text(), str(path))
    except FileNotFoundError:
        raise BadConfig(path, "file", "there is none") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(path, "file", str(error)) from None


def choose_subjects(names: Sequence[str], config: Config, attach: Path | None = None) -> tuple[Subject, ...]:
    """The subjects called `names`, all for none, attached to the socket `attach`. Raises `UsageError`, `MachineError`."""
    chosen = [parse_subject(name, config.table) for name in names] if names else list(config.table)
    if attach is not None:
        if not names:
            raise UsageError("--attach needs the subject that it is about, such as containerd:grpc:runc")
        if not attach.is_socket():
            raise MachineError(f"{attach} is not a socket", "start the engine, or name another with --attach")
        chosen = [dataclasses.replace(subject, socket=str(attach.absolute())) for subject in chosen]
    for index, subject in enumerate(chosen):
        if subject.name in {other.name for other in chosen[:index]}:
            raise UsageError(f"{subject.name} is named twice")
    return tuple(chosen)


def choose_suites(names: Sequence[str], config: Config) -> list[Path]:
    """The folders of the suites called `names`, for none those of `config` or the lifecycle's. Raises `UsageError`."""
    names = names or config.suites or ("lifecycle",)
    known = sorted(folder.name for folder in paths.suites().iterdir() if any(folder.glob("test_*.py")))
    known = [name for name in known if name != "selftest"]
    for name in names:
        if name not in known:
            raise UsageError(f"there is no suite {name!r}; known: {', '.join(known)}")
    return [paths.suites() / name for name in names]
