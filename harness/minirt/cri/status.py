"""From what a call raises to gRPC's status codes, and a line in the log about every call that failed."""

from __future__ import annotations

import errno
import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc

from harness.minirt import errors
from harness.minirt.cri import log

_CODES: tuple[tuple[type[errors.MinirtError], grpc.StatusCode], ...] = (
    (errors.InvalidArgument, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.AlreadyExists, grpc.StatusCode.ALREADY_EXISTS),
    (errors.WrongState, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Unsupported, grpc.StatusCode.UNIMPLEMENTED),
    (errors.Denied, grpc.StatusCode.PERMISSION_DENIED),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
    (errors.Exhausted, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.CommandError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.StepError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.HookError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.StateCorrupt, grpc.StatusCode.DATA_LOSS),
    (errors.TimedOut, grpc.StatusCode.DEADLINE_EXCEEDED),
)
_NUMBERS = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE), grpc.StatusCode.RESOURCE_EXHAUSTED
    ),
    **dict.fromkeys((errno.EACCES, errno.EPERM), grpc.StatusCode.PERMISSION_DENIED),
    errno.EROFS: grpc.StatusCode.FAILED_PRECONDITION,
    errno.ENAMETOOLONG: grpc.StatusCode.INVALID_ARGUMENT,
}
_VALUES = (errno.EINVAL, errno.ERANGE)
"""what the kernel says of a limit that makes no sense"""
_OWN_FAULTS = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNKNOWN,
)
"""what the machine has failed at, and somebody should look at; for the rest the client is to be asked"""

Method = TypeVar("Method", bound=Callable[..., Any])


def code_of(error: Exception) -> grpc.StatusCode:
    """The status that tells a client what kind of error it was."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    if isinstance(error, errors.CgroupError):
        refused = isinstance(error.__cause__, OSError) and error.__cause__.errno in _VALUES
        return grpc.StatusCode.INVALID_ARGUMENT if refused else grpc.StatusCode.FAILED_PRECONDITION
    if isinstance(error, OSError):
        return _NUMBERS.get(error.errno or 0, grpc.StatusCode.UNKNOWN)
    return grpc.StatusCode.UNKNOWN


def answered(method: Method) -> Method:
    """Turn what a servicer's method raises into the status of its call."""

    @functools.wraps(method)
    def call(self: Any, request: Any, context: Any) -> Any:
        started = time.monotonic()
        try:
            answer = method(self, request, context)
        except Exception as error:
            return _refuse(context, method.__name__, started, error)
        if log.LOGGER.isEnabledFor(logging.DEBUG):
            log.debug("answered", call=method.__name__, ms=_milliseconds(started))
        return answer

    return call  # type: ignore[return-value]


def answered_stream(method: Method) -> Method:
    """The same for a method that yields its answers."""

    @functools.wraps(method)
    def call(self: Any, request: Any, context: Any) -> Iterator[Any]:
        started = time.monotonic()
        try:
            yield from method(self, request, context)
        except Exception as error:
            _refuse(context, method.__name__, started, error)

    return call  # type: ignore[return-value]


def _refuse(context: Any, call: str, started: float, error: Exception) -> Any:
    """Log `error` and end the call with it; what nobody has foreseen is a fault of minirt's, and logged with its traceback."""
    facts = {"call": call, "ms": _milliseconds(started)}
    if not isinstance(error, (errors.MinirtError, OSError)):
        log.fault("a call failed in a way that minirt does not know", error, **facts, code="INTERNAL")
        return context.abort(grpc.StatusCode.INTERNAL, f"minirt has a fault: {type(error).__name__}: {error}")
    code, text = code_of(error), str(error) or type(error).__name__
    tell = log.warning if code in _OWN_FAULTS else log.info
    tell("refused", **facts, code=code.name, error=text)
    return context.abort(code, text)


def _milliseconds(started: float) -> str:
    return f"{(time.monotonic() - started) * 1000:.1f}"
