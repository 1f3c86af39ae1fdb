"""Names of images are completed and refused as docker and containerd do."""

from __future__ import annotations

import pytest

from harness.minirt.errors import InvalidArgument
from harness.minirt.images.reference import is_image_id, parse_reference

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1", "docker.io/library/busybox:1"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/library/busybox", "docker.io/library/busybox:latest"),
        ("someone/thing", "docker.io/someone/thing:latest"),
        ("localhost/thing", "localhost/thing:latest"),
        ("127.0.0.1:5000/a/b/c:v1.2", "127.0.0.1:5000/a/b/c:v1.2"),
        ("[::1]:5000/a:1", "[::1]:5000/a:1"),
        ("registry.example/thing@" + DIGEST, "registry.example/thing@" + DIGEST),
        ("registry.example/thing:1@" + DIGEST, "registry.example/thing@" + DIGEST),
    ],
)
def test_completed(text: str, whole: str) -> None:
    reference = parse_reference(text)
    assert str(reference) == whole
    assert parse_reference(whole) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        "UPPER",
        "a/../b",
        "a//b",
        "thing:",
        "thing@sha256:abc",
        "thing@md5:" + "a" * 32,
        "a b",
        "a\n",
        "x" * 5000,
        "-a",
        "a:b:c",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_reference(text)


def test_identities() -> None:
    assert is_image_id(DIGEST)
    assert is_image_id("b" * 64)
    assert not is_image_id("b" * 63)
    assert not is_image_id("busybox")
