"""`CriDoor` over a warm gRPC channel, as a kubelet has one. The only importer of grpc besides minirt."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
from cri_api.v1 import api_pb2 as cri
from cri_api.v1 import api_pb2_grpc

from harness.client.cri_door import CALL_TIMEOUT_S
from harness.client.refusals import by_code
from harness.errors import Unreachable
from harness.model.container import Tally

CONNECT_TIMEOUT_S = 10.0
_LONGEST_MESSAGE = 64 << 20
_REQUESTS = {"GetContainerEvents": "GetEventsRequest"}
"""Requests that are not called as their RPC."""
_IMAGES = frozenset(method.name for method in cri.DESCRIPTOR.services_by_name["ImageService"].methods)


class GrpcDoor:
    """Every call is one RPC, with nothing added."""

    blind: frozenset[str] = frozenset()

    def __init__(self, socket: Path, tally: Tally) -> None:
        """Connect. Raises `Unreachable` when the socket does not answer within `CONNECT_TIMEOUT_S`."""
        self._tally = tally
        self._channel = grpc.insecure_channel(
            f"unix://{socket}",
            options=[("grpc.max_receive_message_length", _LONGEST_MESSAGE), ("grpc.enable_http_proxy", 0)],
        )
        self._runtime = api_pb2_grpc.RuntimeServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._images = api_pb2_grpc.ImageServiceStub(self._channel)  # type: ignore[no-untyped-call]
        try:
            grpc.channel_ready_future(self._channel).result(CONNECT_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            self.close()
            raise Unreachable(f"nothing answers at {socket}", "UNAVAILABLE") from None

    def call(self, rpc: str, request: Mapping[str, Any], timeout_s: float = CALL_TIMEOUT_S) -> Any:
        return self.send(rpc, message_of(rpc, request), timeout_s)

    def send(self, rpc: str, message: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """As `call`, with the request as a message."""
        self._tally.rpcs += 1
        self._tally.by_call[rpc] = self._tally.by_call.get(rpc, 0) + 1
        try:
            return self._method(rpc)(message, timeout=timeout_s)
        except grpc.RpcError as error:
            raise by_code(error.code().name, error.details() or "") from error

    @contextlib.contextmanager
    def stream(self, rpc: str, request: Mapping[str, Any]) -> Iterator[Iterator[Any]]:
        call = self._method(rpc)(message_of(rpc, request))
        try:
            yield _answers(call)
        finally:
            call.cancel()

    def close(self) -> None:
        self._channel.close()

    def _method(self, rpc: str) -> Any:
        return getattr(self._images if rpc in _IMAGES else self._runtime, rpc)


def message_of(rpc: str, request: Mapping[str, Any]) -> Any:
    """The request of `rpc` as a message. Raises `ValueError` or `TypeError` for a field that the API does not have."""
    return getattr(cri, _REQUESTS.get(rpc, f"{rpc}Request"))(**request)


def answer_of(rpc: str, **fields: Any) -> Any:
    """An answer of `rpc` that no runtime gave."""
    return getattr(cri, f"{rpc}Response")(**fields)


def _answers(call: Any) -> Iterator[Any]:
    try:
        yield from call
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.CANCELLED:
            raise by_code(error.code().name, error.details() or "") from error
