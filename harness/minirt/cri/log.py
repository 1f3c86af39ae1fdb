"""The daemon's own log: one line a fact on stderr, ``time=... level=... msg="..." key=value``, for people and for machines."""

from __future__ import annotations

import json
import logging
import time

LOGGER = logging.getLogger("minirt")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)  # one line all the same: json.dumps escapes its breaks
        line = f"time={stamp}.{int(record.msecs):03d}Z level={record.levelname.lower()} msg={json.dumps(text)}"
        facts: dict[str, object] = getattr(record, "facts", {})
        return line + "".join(f" {key}={_value(value)}" for key, value in facts.items())


def _value(value: object) -> str:
    text = str(value)
    return text if text and all(mark.isalnum() or mark in "-_./:@+" for mark in text) else json.dumps(text)


def open_log(level: str) -> None:
    """Have what the daemon says, from `level` on, go to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel("WARNING")
    LOGGER.setLevel(level.upper())


def info(message: str, **facts: object) -> None:
    """Something that happened as it should."""
    LOGGER.info(message, extra={"facts": facts})


def debug(message: str, **facts: object) -> None:
    """Something that matters to who looks for a fault."""
    LOGGER.debug(message, extra={"facts": facts})


def warning(message: str, **facts: object) -> None:
    """Something that somebody should look at."""
    LOGGER.warning(message, extra={"facts": facts})


def fault(message: str, error: BaseException, **facts: object) -> None:
    """Something that must not happen, with its traceback."""
    LOGGER.error(message, extra={"facts": facts}, exc_info=error)
