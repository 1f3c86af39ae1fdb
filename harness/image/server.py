"""The read side of the distribution API, over a folder of images (OCI distribution-spec v1.1, "Pull").

Runs as a process of its own, by its path, on the standard library alone: it starts in a moment inside an arena's network
namespace, and its CPU time is on nobody's account. Prints ``host:port`` once it listens.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import signal
import sys
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

NAME = r"[a-z0-9]+(?:[._/-][a-z0-9]+)*"
ROUTE = re.compile(rf"/v2/(?P<name>{NAME})/(?P<kind>manifests|blobs|tags)/(?P<reference>[A-Za-z0-9_][A-Za-z0-9._:-]*)")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
USER, PASSWORD, TOKEN = "sailor", "harbour", "a-token-of-the-harbour"
LOCKED = {"private": "Basic", "guarded": "Bearer"}
"""The first part of the names that want a password, or a token that is given for the password."""
NOTHING: Mapping[str, str] = {}
TAMPERED = "tampered/"
"""Blobs of these names come with their last byte turned over."""
RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Images:
    """A folder that `harness.image.build.write_images` wrote."""

    def __init__(self, folder: Path) -> None:
        self._blobs = folder / "blobs" / "sha256"
        self._names: dict[str, dict[str, str]] = json.loads((folder / "manifests.json").read_text())
        self._types = {row["digest"]: row["type"] for row in self._names.values()}

    def manifest(self, name: str, reference: str) -> tuple[str, str] | None:
        """Digest and media type of a manifest by tag or digest."""
        if DIGEST.fullmatch(reference):
            return (reference, self._types[reference]) if reference in self._types else None
        row = self._names.get(f"{name}:{reference}")
        return (row["digest"], row["type"]) if row else None

    def blob(self, digest: str) -> Path | None:
        path = self._blobs / digest.removeprefix("sha256:")
        return path if DIGEST.fullmatch(digest) and path.is_file() else None

    def tags(self, name: str) -> list[str]:
        return sorted(full.removeprefix(f"{name}:") for full in self._names if full.startswith(f"{name}:"))


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    server_version = "seatrial-registry"
    images: Images

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        """A token for a password in a form: the OAuth2 way of the Docker registry's token authentication."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode(errors="replace")
        form = {name: values[0] for name, values in parse_qs(body).items()}
        if urlsplit(self.path).path != "/token":
            self._refuse("UNSUPPORTED", "no such endpoint", True)
        elif (form.get("username"), form.get("password")) != (USER, PASSWORD):
            self._lock("Basic", True)
        else:
            self._json(HTTPStatus.OK, {"access_token": TOKEN}, True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the engine's own log says what it asked for."""

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if path in ("/v2", "/v2/"):
            return self._json(HTTPStatus.OK, {}, body)
        if path == "/token":
            if not self._knows_password():
                return self._lock("Basic", body)
            return self._json(HTTPStatus.OK, {"token": TOKEN}, body)
        match = ROUTE.fullmatch(path)
        lock = LOCKED.get(match["name"].partition("/")[0]) if match else None
        if lock and not (
            self._knows_password() if lock == "Basic" else self.headers.get("Authorization") == f"Bearer {TOKEN}"
        ):
            return self._lock(lock, body)
        if match is None:
            return self._refuse("UNSUPPORTED", "no such endpoint", body)
        name, kind, reference = match["name"], match["kind"], match["reference"]
        if kind == "tags" and reference == "list":
            tags = self.images.tags(name)
            if not tags:
                return self._refuse("NAME_UNKNOWN", f"no repository {name}", body)
            return self._json(HTTPStatus.OK, {"name": name, "tags": tags}, body)
        if kind == "manifests":
            found = self.images.manifest(name, reference)
            if found is None:
                code = "MANIFEST_UNKNOWN" if self.images.tags(name) else "NAME_UNKNOWN"
                return self._refuse(code, f"no manifest {name}:{reference}", body)
            digest, media_type = found
        else:
            digest, media_type = reference, "application/octet-stream"
        blob = self.images.blob(digest)
        if blob is None:
            return self._refuse("BLOB_UNKNOWN", f"no blob {reference}", body)
        if kind == "blobs" and name.startswith(TAMPERED):
            data = blob.read_bytes()
            return self._send(HTTPStatus.OK, data[:-1] + bytes([data[-1] ^ 0xFF]), media_type, body)
        return self._send_file(blob, digest, media_type, body)

    def _knows_password(self) -> bool:
        """RFC 7617."""
        kind, _, words = self.headers.get("Authorization", "").partition(" ")
        return kind == "Basic" and words == base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    def _lock(self, kind: str, body: bool) -> None:
        """distribution-spec, and the token authentication of the Docker registry."""
        where = f'realm="http://{self.headers["Host"]}/token",service="seatrial",scope="pull"'
        challenge = 'Basic realm="seatrial"' if kind == "Basic" else f"Bearer {where}"
        errors = {"errors": [{"code": "UNAUTHORIZED", "message": "a password is needed"}]}
        self._json(HTTPStatus.UNAUTHORIZED, errors, body, {"WWW-Authenticate": challenge})

    def _send_file(self, path: Path, digest: str, media_type: str, body: bool) -> None:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            first, last, status = 0, size - 1, HTTPStatus.OK
            asked = RANGE.fullmatch(self.headers.get("Range", ""))
            if asked:
                first = int(asked[1])
                last = min(int(asked[2] or last), last)
                if first > last:
                    self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                    self.send_header("Content-Range", f"bytes */{size}")
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                status = HTTPStatus.PARTIAL_CONTENT
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(last - first + 1))
            self.send_header("Docker-Content-Digest", digest)
            self.send_header("ETag", f'"{digest}"')
            self.send_header("Accept-Ranges", "bytes")
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.end_headers()
            if body:
                self.wfile.flush()
                while first <= last:
                    first += os.sendfile(self.connection.fileno(), file.fileno(), first, last - first + 1)
        return None

    def _refuse(self, code: str, message: str, body: bool) -> None:
        """distribution-spec, "Error Codes"."""
        self._json(HTTPStatus.NOT_FOUND, {"errors": [{"code": code, "message": message}]}, body)

    def _json(self, status: HTTPStatus, value: object, body: bool, headers: Mapping[str, str] = NOTHING) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", body, headers)

    def _send(
        self, status: HTTPStatus, data: bytes, kind: str, body: bool, headers: Mapping[str, str] = NOTHING
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Docker-Distribution-API-Version", "registry/2.0")
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()
        if body:
            self.wfile.write(data)


class Server(ThreadingHTTPServer):
    """A registry over one folder."""

    daemon_threads = True
    request_queue_size = 64
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up in the middle (a cancelled pull) is nothing to speak of; all else is."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def main() -> None:
    """Serve until SIGTERM. Exit status 1 and a word on stderr where the address cannot be had."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--listen", default="127.0.0.1:5000", metavar="HOST:PORT")
    options = parser.parse_args()
    host, _, port = options.listen.rpartition(":")
    handler = type("BoundHandler", (Handler,), {"images": Images(options.folder)})
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    try:
        server = Server((host, int(port)), handler)
    except OSError as error:
        sys.exit(f"{options.listen}: {error.strerror}")
    print(f"{host}:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
