"""A registry of a test's own on loopback, and the images in it, made of a static busybox: for the tests of minirt alone."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from harness.image.server import Server

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
APPLETS = (
    "sh",
    "cat",
    "echo",
    "sleep",
    "true",
    "false",
    "ls",
    "id",
    "kill",
    "ps",
    "mount",
    "hostname",
    "env",
    "head",
    "ip",
    "setsid",
    "stty",
    "dd",
    "nc",
)


BASIC = "Basic dXNlcjpzZWNyZXQ="  # user:secret


def digest_of(raw: bytes) -> str:
    return "sha256:" + hashlib.sha256(raw).hexdigest()


@dataclass(frozen=True)
class Fault:
    """What happens to one request instead of a good answer."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = -1
    """if not negative, the connection is closed behind so many bytes of the body"""
    stall: threading.Event | None = None
    """if any, nothing more comes before it is set, behind `cut` bytes"""
    trickle: threading.Event | None = None
    """if any, bytes come one by one, with 5 ms between them, until it is set"""


@dataclass
class Registry:
    """What is served. Tests change it at will; `requests` are the paths that were asked for, `seen` with the headers."""

    address: str = ""
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    token: str = ""
    """if any, what a bearer token has to be; given to user:secret at /token"""
    token_lasts_s: int = 0
    """what `/token` says of a token's life; 0: nothing"""
    basic: bool = False
    """whether user:secret is asked for directly"""
    hold: threading.Event | None = None
    """if any, blobs are not sent before it is set"""
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    """what goes wrong, one after the other, to requests for a tag, a digest or `token`"""
    ranges: bool = True
    store: str = ""
    """if any, the address of another registry to which requests for blobs are redirected"""
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def authorizations(self, kind: str = "") -> set[str]:
        """The Authorization headers that came with requests whose path has `kind` in it; "" is none."""
        return {headers.get("Authorization", "") for path, headers in self.seen if kind in path}

    def add_blob(self, raw: bytes) -> dict[str, Any]:
        self.blobs[digest_of(raw)] = raw
        return {"digest": digest_of(raw), "size": len(raw)}

    def add_manifest(self, name: str, tag: str, raw: bytes, media_type: str) -> str:
        for target in (tag, digest_of(raw)):
            self.manifests[name, target] = (media_type, raw)
        return digest_of(raw)

    def add_image(
        self,
        name: str,
        tag: str,
        layers: Sequence[bytes],
        config: dict[str, Any] | None = None,
        *,
        compress: bool = True,
        media_type: str = OCI_MANIFEST,
    ) -> str:
        """An image of plain tar layers; the digest of its manifest."""
        document = {
            "architecture": "amd64",
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        }
        sent = [gzip.compress(layer, mtime=0) if compress else layer for layer in layers]
        manifest = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                **self.add_blob(json.dumps(document).encode()),
            },
            "layers": [
                {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", **self.add_blob(layer)} for layer in sent
            ],
        }
        return self.add_manifest(name, tag, json.dumps(manifest).encode(), media_type)


def tar_of(*members: tuple[tarfile.TarInfo | str, bytes]) -> bytes:
    """A plain tar of members: a name is a file of mode 0644, one that ends in a slash a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if isinstance(member, str) and member.endswith("/"):
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def entry(name: str, type: bytes, **facts: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A member that is no file, for `tar_of`."""
    info = tarfile.TarInfo(name)
    info.type = type
    for key, value in facts.items():
        setattr(info, key, value)
    return info, b""


def busybox_layer() -> bytes:
    """/bin with busybox under its applets' names, as hard links; passwd and group; /tmp and /etc."""
    program = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    busybox = tarfile.TarInfo("bin/busybox")
    busybox.mode = 0o755
    tmp = tarfile.TarInfo("tmp")
    tmp.type, tmp.mode = tarfile.DIRTYPE, 0o1777
    return tar_of(
        ("bin/", b""),
        (busybox, program),
        *(entry(f"bin/{name}", tarfile.LNKTYPE, linkname="bin/busybox", mode=0o755) for name in APPLETS),
        ("etc/", b""),
        ("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n"),
        ("etc/group", b"root:x:0:\nalice:x:1000:\nsailors:x:2000:alice\n"),
        (tmp, b""),
    )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: Registry

    def do_GET(self) -> None:
        registry = self.registry
        path = self.path.partition("?")[0]
        registry.requests.append(path)
        registry.seen.append((self.path, dict(self.headers.items())))
        target = path.rpartition("/")[2]
        fault = Fault()
        if registry.faults.get(target):
            fault = registry.faults[target].pop(0)
        if fault.status:
            return self._send(fault.status, b"{}", "application/json", fault.headers)
        if path == "/token":
            if self.headers.get("Authorization") != BASIC:
                return self._send(401, b"{}", "application/json")
            answer: dict[str, Any] = {"token": registry.token}
            if registry.token_lasts_s:
                answer["expires_in"] = registry.token_lasts_s
            return self._send(200, json.dumps(answer).encode(), "application/json")
        if registry.token and self.headers.get("Authorization") != f"Bearer {registry.token}":
            challenge = f'Bearer realm="http://{registry.address}/token",service="test",scope="repository:any:pull"'
            return self._send(401, b"{}", "application/json", {"WWW-Authenticate": challenge})
        if registry.basic and self.headers.get("Authorization") != BASIC:
            return self._send(401, b"{}", "application/json", {"WWW-Authenticate": 'Basic realm="test"'})
        name, _, target = path.removeprefix("/v2/").rpartition("/")
        name, _, kind = name.rpartition("/")
        if kind == "manifests" and (name, target) in registry.manifests:
            media_type, raw = registry.manifests[name, target]
            return self._send(200, raw, media_type, fault=fault)
        if kind == "blobs" and registry.store:
            return self._send(307, b"", "text/plain", {"Location": f"http://{registry.store}{path}"})
        if kind == "blobs" and target in registry.blobs:
            if registry.hold is not None:
                registry.hold.wait(30)
            return self._send_blob(registry.blobs[target], fault)
        errors = [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]
        return self._send(404, json.dumps({"errors": errors}).encode(), "application/json")

    def do_POST(self) -> None:
        """The token server, for identity tokens."""
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        self.registry.requests.append(self.path)
        self.registry.seen.append((f"{self.path}?{raw.decode()}", dict(self.headers.items())))
        if b"refresh_token=identity" not in raw:
            return self._send(401, b"{}", "application/json")
        return self._send(200, json.dumps({"access_token": self.registry.token}).encode(), "application/json")

    def _send_blob(self, raw: bytes, fault: Fault) -> None:
        first = 0
        asked = self.headers.get("Range", "")
        if asked and self.registry.ranges:
            first = int(asked.removeprefix("bytes=").rstrip("-"))
            headers = {"Content-Range": f"bytes {first}-{len(raw) - 1}/{len(raw)}"}
            return self._send(206, raw[first:], "application/octet-stream", headers, fault)
        return self._send(200, raw, "application/octet-stream", fault=fault)

    def _send(
        self,
        status: int,
        raw: bytes,
        media_type: str,
        headers: dict[str, str] | None = None,
        fault: Fault = Fault(),
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": media_type, "Content-Length": str(len(raw)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # a client that has given up
            if fault.trickle is not None:
                while raw and not fault.trickle.wait(0.005):
                    self.wfile.write(raw[:1])
                    raw = raw[1:]
            self.wfile.write(raw if fault.cut < 0 else raw[: fault.cut])
            if fault.stall is not None:
                fault.stall.wait(30)
            self.close_connection = self.close_connection or fault.cut >= 0

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: tests look at `Registry.requests`."""


@contextmanager
def serving_registry() -> Iterator[Registry]:
    """A registry on a free port of loopback."""
    registry = Registry()
    handler = type("Handler", (_Handler,), {"registry": registry})
    server = Server(("127.0.0.1", 0), handler)
    registry.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    import sys

    served = Registry(address=f"127.0.0.1:{sys.argv[1]}")
    served.add_image("busybox", "1", [busybox_layer()], {"Env": ["PATH=/bin"]})
    with Server(("127.0.0.1", int(sys.argv[1])), type("Handler", (_Handler,), {"registry": served})) as standalone:
        print(served.address, flush=True)
        standalone.serve_forever()
