"""The registry of the test images, as its clients see it."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from arena_traces import fresh_run, traces

from harness.arena import Arena
from harness.command import HostRunner
from harness.errors import MachineError
from harness.image.build import write_images
from harness.image.registry import serve
from harness.image.server import PASSWORD, USER

NAME = "seatrial/busybox"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("images") / "blobs"
    return folder, write_images(folder)


@pytest.fixture(scope="module")
def address(images: tuple[Path, dict[str, str]]) -> Iterator[str]:
    with serve(HostRunner(), images[0], 0) as where:
        yield str(where)


def ask(address: str, path: str, method: str = "GET", **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    with closing(http.client.HTTPConnection(address, timeout=10)) as link:
        link.request(method, path, headers=headers)
        answer = link.getresponse()
        return answer.status, answer.headers, answer.read()


def test_the_base_endpoint(address: str) -> None:
    status, headers, _ = ask(address, "/v2/")
    assert status == 200
    assert headers["Docker-Distribution-API-Version"] == "registry/2.0"


def test_a_manifest_by_tag_and_by_digest(address: str, images: tuple[Path, dict[str, str]]) -> None:
    digest = images[1][f"{NAME}:1"]
    status, headers, body = ask(address, f"/v2/{NAME}/manifests/1")
    assert (status, headers["Docker-Content-Digest"]) == (200, digest)
    assert f"sha256:{hashlib.sha256(body).hexdigest()}" == digest
    assert headers["Content-Type"] == json.loads(body)["mediaType"]
    assert ask(address, f"/v2/{NAME}/manifests/{digest}")[2] == body


def test_head_has_the_length_and_no_body(address: str) -> None:
    _, _, body = ask(address, f"/v2/{NAME}/manifests/1")
    status, headers, nothing = ask(address, f"/v2/{NAME}/manifests/1", "HEAD")
    assert (status, int(headers["Content-Length"]), nothing) == (200, len(body), b"")


def test_blobs_whole_in_part_and_at_the_same_time(address: str) -> None:
    manifest = json.loads(ask(address, f"/v2/{NAME}/manifests/1")[2])
    path = f"/v2/{NAME}/blobs/{manifest['layers'][0]['digest']}"
    _, _, whole = ask(address, path)
    assert f"sha256:{hashlib.sha256(whole).hexdigest()}" == manifest["layers"][0]["digest"]
    status, headers, part = ask(address, path, Range="bytes=100-199")
    assert (status, part) == (206, whole[100:200])
    assert headers["Content-Range"] == f"bytes 100-199/{len(whole)}"
    assert ask(address, path, Range=f"bytes={len(whole) - 5}-")[2] == whole[-5:]
    assert ask(address, path, Range=f"bytes={len(whole)}-")[0] == 416
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda: got.append(ask(address, path)[2])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [whole] * 6


def test_tags(address: str) -> None:
    body = json.loads(ask(address, f"/v2/{NAME}/tags/list")[2])
    assert body["name"] == NAME
    assert "1" in body["tags"]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (f"/v2/{NAME}/manifests/missing", "MANIFEST_UNKNOWN"),
        (f"/v2/{NAME}/manifests/sha256:{'0' * 64}", "MANIFEST_UNKNOWN"),
        ("/v2/seatrial/missing/manifests/1", "NAME_UNKNOWN"),
        ("/v2/seatrial/missing/tags/list", "NAME_UNKNOWN"),
        (f"/v2/{NAME}/blobs/sha256:{'0' * 64}", "BLOB_UNKNOWN"),
        (f"/v2/{NAME}/blobs/sha256:..%2f..%2fmanifests.json", "BLOB_UNKNOWN"),
    ],
)
def test_what_is_missing_is_told_in_the_specifications_words(address: str, path: str, code: str) -> None:
    status, _, body = ask(address, path)
    assert status == 404
    if "%2f" not in path:
        assert json.loads(body)["errors"][0]["code"] == code


def test_a_port_that_is_taken(images: tuple[Path, dict[str, str]]) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        with (
            pytest.raises(MachineError, match="cannot listen"),
            serve(HostRunner(), images[0], holder.getsockname()[1]),
        ):
            pass


def test_a_registry_that_does_not_answer(images: tuple[Path, dict[str, str]]) -> None:
    with (
        pytest.raises(MachineError, match="did not answer within 0 s"),
        serve(HostRunner(), images[0], 0, timeout_s=0),
    ):
        pass


def test_in_an_arena_the_port_is_the_arenas_own(images: tuple[Path, dict[str, str]]) -> None:
    run = fresh_run()
    with (
        Arena.open(run, "one") as one,
        Arena.open(run, "two") as two,
        serve(one, images[0], 5000) as first,
        serve(two, images[0], 5000) as second,
    ):
        assert str(first) == str(second) == "127.0.0.1:5000"
        for arena in (one, two):
            said = arena.run(["busybox", "wget", "-qO-", f"http://{first}/v2/{NAME}/tags/list"], timeout_s=10).check()
            assert NAME in said.text
            assert arena.pids("client") == []
    assert traces(run) == []


def test_it_ends_with_the_context(images: tuple[Path, dict[str, str]]) -> None:
    with serve(HostRunner(), images[0], 0) as where:
        assert ask(str(where), "/v2/")[0] == 200
    with pytest.raises(ConnectionRefusedError):
        ask(str(where), "/v2/")


def test_a_private_repository_wants_its_password(address: str) -> None:
    basic = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    status, headers, _ = ask(address, "/v2/private/spare/manifests/1")
    assert (status, headers["WWW-Authenticate"]) == (401, 'Basic realm="seatrial"')
    assert ask(address, "/v2/private/spare/manifests/1", Authorization="Basic xxxx")[0] == 401
    assert ask(address, "/v2/private/spare/manifests/1", Authorization=f"Basic {basic}")[0] == 200


def test_a_guarded_repository_wants_a_token_that_the_password_buys(address: str) -> None:
    basic = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    status, headers, _ = ask(address, "/v2/guarded/spare/manifests/1", Authorization=f"Basic {basic}")
    assert status == 401
    assert headers["WWW-Authenticate"].startswith(f'Bearer realm="http://{address}/token"')
    assert ask(address, "/token")[0] == 401
    token = json.loads(ask(address, "/token", Authorization=f"Basic {basic}")[2])["token"]
    assert ask(address, "/v2/guarded/spare/manifests/1", Authorization=f"Bearer {token}")[0] == 200


def test_a_tampered_blob_is_not_what_its_digest_says(address: str) -> None:
    manifest = json.loads(ask(address, "/v2/tampered/spare/manifests/1")[2])
    for row in (manifest["config"], *manifest["layers"]):
        _, _, data = ask(address, f"/v2/tampered/spare/blobs/{row['digest']}")
        assert len(data) == row["size"]
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" != row["digest"]
