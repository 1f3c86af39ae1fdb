"""The signal that a container is asked to stop with: from the image or the configuration, and back for a status."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

from cri_api.v1 import api_pb2 as api

from harness.minirt.errors import InvalidArgument

_OTHER_NAMES = {"SIGCLD": "SIGCHLD", "SIGPOLL": "SIGIO", "SIGIOT": "SIGABRT"}


def stop_signal(config: api.ContainerConfig, image: Mapping[str, Any]) -> int:
    """The number: the configuration's, else the image's, else SIGTERM. Raises `InvalidArgument`."""
    if config.stop_signal:
        try:
            name = api.Signal.Name(config.stop_signal)
        except ValueError:
            raise InvalidArgument(f"stop_signal {config.stop_signal} is not a signal") from None
        return parse_signal(name.replace("PLUS", "+").replace("MINUS", "-"))
    return parse_signal(str(image.get("StopSignal") or "SIGTERM"))


def parse_signal(text: str) -> int:
    """A signal's number from its number, or its name with or without SIG, also relative (RTMIN+3). Raises `InvalidArgument`."""
    if text.isdigit() and 0 < int(text) <= signal.SIGRTMAX:
        return int(text)
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    base, sign, offset = name.partition("+" if "+" in name else "-")
    known = _OTHER_NAMES.get(base, base)
    try:
        number = int(signal.Signals[known]) if known in signal.Signals.__members__ else int(getattr(signal, known))
        number += int(f"{sign}{offset}") if sign else 0
    except (AttributeError, ValueError):
        raise InvalidArgument(f"{text!r} is not a signal") from None
    return number


def signal_of_number(number: int) -> Any:
    """CRI's ``Signal`` for a number; RUNTIME_DEFAULT for one that CRI has no name for."""
    if number in (signal.SIGRTMIN, signal.SIGRTMAX) or number < signal.SIGRTMIN:
        name = signal.Signals(number).name if number in signal.Signals.__members__.values() else ""
    elif number - signal.SIGRTMIN <= signal.SIGRTMAX - number:
        name = f"SIGRTMINPLUS{number - signal.SIGRTMIN}"
    else:
        name = f"SIGRTMAXMINUS{signal.SIGRTMAX - number}"
    return api.Signal.Value(name) if name in api.Signal.keys() else api.Signal.RUNTIME_DEFAULT  # noqa: SIM118
