"""A blob on its way: checked while it streams, and gone on with where a connection broke."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time

import urllib3

from harness.minirt.errors import InvalidArgument, Unavailable
from harness.minirt.images.manifest import Descriptor
from harness.minirt.images.registry import Repository, reason_of

_PIECE = 1 << 18
_PROGRESS_BYTES = 1 << 16
"""A try that brought so much, or the rest, was not in vain."""
_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


class Download:
    """The blob of `descriptor`. `read` gives its bytes; at the end they have been what was asked for.

    A context manager. Reading raises `InvalidArgument` where size or digest are not as promised, and what
    `Repository.request` raises; a broken connection is made again, and the rest asked for.
    """

    def __init__(self, repository: Repository, descriptor: Descriptor) -> None:
        self._repository = repository
        self._descriptor = descriptor
        self._hash = hashlib.new(descriptor.digest.partition(":")[0])
        self._stack = contextlib.ExitStack()
        self._response: urllib3.BaseHTTPResponse | None = None
        self._failed = 0
        self._progress_at = self._paced_at = 0
        self._waited_s = 0.0
        self.received = 0

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def read(self, size: int = _PIECE, /) -> bytes:
        """1 to `size` bytes; b"" at the end."""
        while True:
            if self._response is None and 0 < self.received == self._descriptor.size:
                self._check()
                return b""
            try:
                if self._response is None:
                    self._open()
                assert self._response is not None
                began = time.monotonic()
                part: bytes = self._response.read1(
                    min(size, _PIECE)
                )  # not `read`, which collects all that it is asked for
                self._waited_s += time.monotonic() - began
            except urllib3.exceptions.HTTPError as error:
                self._broken(reason_of(error))
                continue
            self.received += len(part)
            if self.received > self._descriptor.size:
                raise self._lie("longer")
            if part:
                self._hash.update(part)
                self._check_pace()
                return part
            if self.received == self._descriptor.size:
                self._check()
                return b""
            self._broken("the connection ended")

    def _check_pace(self) -> None:
        """A registry that sends a byte now and then for ever counts as broken."""
        if self._waited_s >= self._repository.patience.trickle_s:
            if self.received - self._paced_at < _PROGRESS_BYTES and self.received < self._descriptor.size:
                self._broken(f"{self._waited_s:.0f} s brought {self.received - self._paced_at} bytes")
            self._waited_s, self._paced_at = 0.0, self.received

    def _open(self) -> None:
        descriptor = self._descriptor
        headers = {"Range": f"bytes={self.received}-"} if self.received else {}
        response = self._stack.enter_context(
            self._repository.request(f"blobs/{descriptor.digest}", headers, urls=descriptor.urls)
        )
        whole = response.headers.get("Content-Length", "")
        if response.status == 200:
            if whole.isdigit() and int(whole) != descriptor.size:
                raise self._lie(f"{whole} bytes long")
            self._skip(response, self.received)
        else:
            begins = _RANGE.match(response.headers.get("Content-Range", ""))
            if begins is None or int(begins[1]) != self.received:
                raise Unavailable(f"{descriptor.digest}: the registry sent another part than was asked for")
        self._response = response

    @staticmethod
    def _skip(response: urllib3.BaseHTTPResponse, size: int) -> None:
        """Pass by what is here already: this server has no ranges."""
        while size > 0 and (part := response.read1(min(size, _PIECE))):
            size -= len(part)

    def _broken(self, reason: str) -> None:
        self._close()
        if self.received - self._progress_at >= _PROGRESS_BYTES:
            self._failed, self._progress_at = 0, self.received
        self._failed += 1
        if self._failed >= self._repository.patience.tries:
            raise Unavailable(
                f"the transfer of {self._descriptor.digest} broke off after {self.received} of "
                f"{self._descriptor.size} bytes, {self._failed} times in a row: {reason}"
            )
        self._repository.patience.wait(self._failed)

    def _close(self) -> None:
        self._response = None
        self._stack.close()

    def _check(self) -> None:
        found = f"{self._hash.name}:{self._hash.hexdigest()}"
        if found != self._descriptor.digest:
            raise InvalidArgument(f"{self._descriptor.digest} was asked for, what came has the digest {found}")

    def _lie(self, what: str) -> InvalidArgument:
        return InvalidArgument(f"{self._descriptor.digest} is {what}, its manifest says {self._descriptor.size} bytes")
