"""From minirt's errors to gRPC's status codes."""

from __future__ import annotations

import functools
from collections.abc import Callable
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
    (errors.TimedOut, grpc.StatusCode.DEADLINE_EXCEEDED),
)
_NO_SPACE = (28, 122)  # ENOSPC, EDQUOT

Method = TypeVar("Method", bound=Callable[..., Any])


def code_of(error: Exception) -> grpc.StatusCode:
    """The status that tells a client what kind of error it was."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    return grpc.StatusCode.UNKNOWN


def answered(method: Method) -> Method:
    """Turn what a servicer's method raises into the status of its call."""

    @functools.wraps(method)
    def call(self: Any, request: Any, context: Any) -> Any:
        try:
            return method(self, request, context)
        except (errors.MinirtError, OSError) as error:
            log.debug("refused", call=method.__name__, error=error)
            return context.abort(code_of(error), str(error) or type(error).__name__)

    return call  # type: ignore[return-value]
