"""Manifests, indexes and configurations, as they should be, as they are, and as somebody hostile writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minirt_images import LAYERS, Bench, bench_on
from minirt_registry import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, digest_of

from harness.minirt.errors import InvalidArgument, NotFound
from harness.minirt.images.manifest import (
    candidates,
    diff_ids,
    is_index,
    parse_config,
    parse_descriptor,
    parse_manifest,
    parse_object,
)

DIGESTS = [f"sha256:{number:064x}" for number in range(16)]
CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": DIGESTS[0], "size": 2}


def row(number: int, *platform: str, **facts: Any) -> dict[str, Any]:
    """An entry of an index; `platform` is architecture and variant."""
    entry: dict[str, Any] = {"digest": DIGESTS[number], "size": 1, **facts}
    if platform:
        entry["platform"] = {"os": "linux", **dict(zip(("architecture", "variant"), platform, strict=False))}
    return entry


@pytest.mark.parametrize(
    ("machine", "wanted"),
    [
        ("x86_64", [1, 2, 0, 9]),
        ("aarch64", [3, 4, 6, 5, 7, 9]),
        ("armv7l", [6, 5, 7, 9]),
        ("armv6l", [7, 9]),
        ("s390x", [8, 9]),
    ],
)
def test_platforms_are_ranked(machine: str, wanted: list[int]) -> None:
    rows = [
        row(0, "386"),
        row(1, "amd64"),
        row(2, "amd64", "v1"),
        row(9),
        row(3, "arm64"),
        row(4, "arm64", "v8"),
        row(7, "arm", "v6"),
        row(6, "arm"),
        row(5, "arm", "v7"),
        row(8, "s390x"),
        row(10, "amd64", "v4"),
        row(11, "unknown"),
        {**row(12), "platform": {"os": "windows", "architecture": "amd64"}},
    ]
    found = [DIGESTS.index(item.digest) for item in candidates({"manifests": rows}, "x", machine)]
    assert found == wanted  # what names no platform is the last resort


def test_a_missing_platform_names_those_on_offer() -> None:
    rows = {"manifests": [row(1, "arm", "v6"), {**row(2), "platform": {"os": "windows", "architecture": "amd64"}}]}
    with pytest.raises(NotFound, match="no image for linux/amd64, only for linux/arm/v6, windows/amd64"):
        candidates(rows, "x", "x86_64")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schemaVersion": 1}, "schema 1"),
        ({"mediaType": "application/vnd.docker.distribution.manifest.v1+prettyjws"}, "schema 1"),
        ({"layers": None}, "not an image manifest"),
        ({"layers": {}}, "not an image manifest"),
        ({"config": None}, "malformed descriptor"),
        ({"config": {**CONFIG, "mediaType": "application/vnd.cncf.helm.config.v1+json"}}, "artifact of type"),
        ({"config": {**CONFIG, "mediaType": "application/vnd.oci.empty.v1+json"}}, "artifact of type"),
        ({"config": {**CONFIG, "size": 1 << 30}}, "too large"),
        ({"config": {**CONFIG, "digest": "sha512:" + "a" * 128}}, "not a sha256"),
        ({"layers": [{**CONFIG, "mediaType": "application/vnd.cncf.helm.chart.content.v1.tar+gzip"}]}, "artifact"),
        ({"layers": [{**CONFIG, "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"}]}, "encrypted"),
        ({"layers": [{**CONFIG, "mediaType": ""}] * 5000}, "5000 layers"),
        ({"layers": [{**CONFIG, "size": -1}]}, "malformed descriptor"),
        ({"layers": [{**CONFIG, "size": True}]}, "malformed descriptor"),
        ({"layers": [{**CONFIG, "size": 1 << 50}]}, "malformed descriptor"),
        ({"layers": [{**CONFIG, "digest": "md5:abc"}]}, "malformed descriptor"),
    ],
)
def test_what_is_no_image(change: dict[str, Any], reason: str) -> None:
    content = {"schemaVersion": 2, "config": CONFIG, "layers": [], **change}
    with pytest.raises(InvalidArgument, match=reason):
        parse_manifest(content, "x")


def test_layers_of_every_type() -> None:
    types = (
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "",
    )
    layers = [{"mediaType": kind, "digest": DIGESTS[1], "size": 1, "urls": ["https://x/"]} for kind in types]
    content = parse_manifest({"schemaVersion": 2, "config": CONFIG, "layers": layers}, "x")
    assert [layer.media_type for layer in content.layers] == list(types)
    assert content.layers[0].urls == ("https://x/",)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rootfs": {}}, None),
        ({"rootfs": {"diff_ids": None}}, None),
        ({"rootfs": None}, "list of its layers"),
        ({"rootfs": {"diff_ids": ["x"]}}, "list of its layers"),
        ({"os": "windows"}, "for 'windows'"),
        ({"config": []}, None),
        ({"config": "x"}, "not an object"),
        ({"config": {"Env": "A=b"}}, "config.Env"),
        ({"config": {"Cmd": [1]}}, "config.Cmd"),
        ({"config": {"User": 5}}, "config.User"),
        ({"config": {"Volumes": ["/x"]}}, "config.Volumes"),
        ({"config": {"Env": None, "User": None, "Labels": None}}, None),
    ],
)
def test_configurations(change: dict[str, Any], reason: str | None) -> None:
    raw = json.dumps({"os": "linux", "rootfs": {"diff_ids": [DIGESTS[0]]}, "config": {}, **change}).encode()
    if reason is None:
        assert isinstance(diff_ids(parse_config(raw, "x")), list)
    else:
        with pytest.raises(InvalidArgument, match=reason):
            parse_config(raw, "x")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(DIGESTS[:2]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                (
                    *("manifests", "layers", "config", "digest", "size", "mediaType", "platform", "os"),
                    *("architecture", "urls", "rootfs", "diff_ids", "Env", "Cmd", "User", "schemaVersion", "variant"),
                )
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(JSON)
def test_no_json_gets_through_as_anything_but_an_image_or_an_error(value: Any) -> None:
    raw = json.dumps(value).encode()
    for read in (
        lambda: parse_manifest(parse_object(raw, "x"), "x"),
        lambda: candidates(parse_object(raw, "x"), "x"),
        lambda: parse_config(raw, "x"),
        lambda: parse_descriptor(value, "x"),
        lambda: is_index(parse_object(raw, "x")),
    ):
        try:
            read()  # type: ignore[no-untyped-call]
        except (InvalidArgument, NotFound) as error:
            assert len(str(error)) < 1000


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_no_bytes_get_through_as_json(raw: bytes) -> None:
    try:
        parse_object(raw, "x")
    except InvalidArgument:
        return
    assert isinstance(json.loads(raw), dict)


def test_deep_json_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="not JSON"):
        parse_object(b'{"a":' * 200_000, "x")


# -- through a registry ------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with bench_on(tmp_path) as bench:
        yield bench


def add_index(bench: Bench, tag: str, *rows: dict[str, Any]) -> str:
    raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": rows, "x": tag}).encode()
    return bench.registry.add_manifest("a", tag, raw, OCI_INDEX)


def test_an_index_inside_an_index(bench: Bench) -> None:
    ours = bench.registry.add_image("a", "ours", LAYERS)
    empty = add_index(bench, "empty", {"digest": ours, "size": 1, "platform": {"os": "plan9", "architecture": "vax"}})
    inner = add_index(bench, "inner", {"digest": ours, "size": 1})
    add_index(bench, "1", {"digest": empty, "size": 1}, {"digest": inner, "size": 1})
    image = bench.store.get(bench.pull("a:1"))
    assert len(image.blobs) == 4  # both indexes on the way, the manifest, the configuration


def test_indexes_without_end_are_refused(bench: Bench) -> None:
    digest = bench.registry.add_image("a", "ours", LAYERS)
    for depth in range(6):
        digest = add_index(bench, str(depth), {"digest": digest, "size": 1})
    with pytest.raises(InvalidArgument, match="nested too deep"):
        bench.pull("a:5")
    wide = [
        {"digest": add_index(bench, f"w{n}", {"digest": DIGESTS[1], "size": 1, "platform": {"os": "none"}}), "size": 1}
        for n in range(40)
    ]
    add_index(bench, "wide", *wide)
    with pytest.raises(InvalidArgument, match="too many"):
        bench.pull("a:wide")
    assert len(bench.registry.requests) < 60


def test_a_huge_manifest_is_refused(bench: Bench) -> None:
    bench.registry.add_manifest("a", "1", b'{"x": "' + b"x" * (5 << 20) + b'"}', OCI_MANIFEST)
    with pytest.raises(InvalidArgument, match="longer than"):
        bench.pull("a:1")


def test_a_header_that_lies_about_the_type(bench: Bench) -> None:
    bench.registry.add_image("a", "1", LAYERS, media_type=DOCKER_MANIFEST)
    media_type, raw = bench.registry.manifests["a", "1"]
    assert media_type == DOCKER_MANIFEST
    bench.registry.add_manifest("a", "1", raw, OCI_INDEX)  # the document's own word counts
    bench.pull("a:1")


def test_a_foreign_layer_comes_from_its_own_place_without_credentials(bench: Bench) -> None:
    from minirt_registry import serving_registry

    bench.registry.add_image("a", "1", LAYERS)
    manifest = json.loads(bench.registry.manifests["a", "1"][1])
    layer = manifest["layers"][0]
    with serving_registry() as abroad:
        abroad.blobs[layer["digest"]] = bench.registry.blobs.pop(layer["digest"])
        layer["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        layer["urls"] = ["file:///etc/passwd", f"http://{abroad.address}/v2/x/blobs/{layer['digest']}"]
        bench.registry.add_manifest("a", "1", json.dumps(manifest).encode(), OCI_MANIFEST)
        bench.registry.basic = True
        from harness.minirt.images.credentials import Credentials

        bench.pull("a:1", Credentials("user", "secret"))
        assert abroad.authorizations() == {""}


def test_a_manifest_by_tag_and_digest_counts_by_its_digest(bench: Bench) -> None:
    digest = bench.registry.add_image("a", "1", LAYERS)
    bench.pull(f"a:1@{digest}")
    (image,) = bench.store.list()
    assert (image.tags, image.digests) == ((), (f"{bench.registry.address}/a@{digest}",))
    with pytest.raises(NotFound):
        bench.pull(f"a:1@{digest_of(b'other')}")
