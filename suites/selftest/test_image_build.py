"""The test images: the same bytes each time, and what is in them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest
import zstandard

from harness.errors import MachineError
from harness.image.build import build_images, busybox_path, write_images
from harness.image.bundle import unpack
from harness.image.heavy import heavy_image
from harness.image.layer import Entry, build_layer


def test_the_same_busybox_gives_the_same_digests(tmp_path: Path) -> None:
    one, two = write_images(tmp_path / "one"), write_images(tmp_path / "two")
    assert one == two
    assert set(one) >= {"seatrial/busybox:1", "seatrial/spare:1", "seatrial/pause:1"}
    assert len(set(one.values())) == len(one)


def test_another_program_gives_other_digests(tmp_path: Path) -> None:
    other = tmp_path / "busybox"
    other.write_bytes(busybox_path().read_bytes() + b"\0")
    mine = {image.name: image.manifest.digest for image in build_images(other)}
    theirs = {image.name: image.manifest.digest for image in build_images(busybox_path())}
    changed = {name for name in theirs if mine[name] != theirs[name]}
    # Those without the program are the same for every program.
    assert set(theirs) - changed == {"seatrial/foreign:1", "seatrial/abroad:1", "tampered/spare:1"}


def test_a_layer_knows_no_time_owner_or_machine() -> None:
    layer = build_layer([Entry("a"), Entry("a/b", 0o644, b"text"), Entry("a/c", link="a/b")])
    with tarfile.open(fileobj=io.BytesIO(layer.blob.data)) as tar:
        members = tar.getmembers()
    assert [(member.name, member.mtime, member.uid, member.gid, member.uname) for member in members] == [
        (name, 0, 0, 0, "") for name in ("a", "a/b", "a/c")
    ]
    assert members[2].islnk()
    # RFC 1952: no time, no name, unknown system.
    assert layer.blob.data[3:8] == bytes(5)
    assert layer.blob.data[9] == 255


def test_every_blob_is_there_and_is_what_its_descriptor_says(tmp_path: Path) -> None:
    for image in build_images(busybox_path()):
        blobs = {blob.digest: blob for blob in image.blobs}
        manifest = json.loads(image.manifest.data)
        if "manifests" in manifest:
            continue
        config = json.loads(blobs[manifest["config"]["digest"]].data)
        for row in (manifest["config"], *manifest["layers"]):
            assert len(blobs[row["digest"]].data) == row["size"]
        assert len(config["rootfs"]["diff_ids"]) == len(manifest["layers"])


def test_an_index_names_its_images_and_their_platforms() -> None:
    images = {image.name: image for image in build_images(busybox_path())}
    for name, kind in (("seatrial/many:1", "image.index.v1"), ("seatrial/dockermany:1", "manifest.list.v2")):
        index = json.loads(images[name].manifest.data)
        assert kind in index["mediaType"] == images[name].manifest.media_type
        foreign, mine = index["manifests"]
        assert foreign["digest"] == images["seatrial/foreign:1"].manifest.digest
        assert foreign["platform"] == {"os": "linux", "architecture": "mips64le"} != mine["platform"]


def test_a_zstd_layer_unpacks_to_the_same_archive() -> None:
    entries = [Entry("a", 0o644, bytes(range(256)) * 2000)]
    packed, plain = build_layer(entries, "zstd"), build_layer(entries, "plain")
    assert packed.diff_id == plain.diff_id == plain.blob.digest
    assert packed.blob.media_type.endswith(".tar+zstd")
    reader = zstandard.ZstdDecompressor().decompressobj()
    assert reader.decompress(packed.blob.data) == plain.blob.data


def test_unpacked_applets_are_hard_links_of_one_program(tmp_path: Path) -> None:
    write_images(tmp_path / "blobs")
    root = tmp_path / "root"
    unpack(tmp_path / "blobs", "seatrial/busybox:1", root)
    assert (root / "bin/sh").stat().st_ino == (root / "bin/busybox").stat().st_ino
    assert not (root / "bin/sh").is_symlink()
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert "sailor" in (root / "etc/passwd").read_text()
    with pytest.raises(FileExistsError):
        unpack(tmp_path / "blobs", "seatrial/busybox:1", root)
    with pytest.raises(KeyError):
        unpack(tmp_path / "blobs", "seatrial/none:1", tmp_path / "none")


def test_a_dynamic_or_missing_busybox_is_refused(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\n")
    with pytest.raises(MachineError, match="busybox-static"):
        busybox_path([tmp_path / "script", tmp_path / "missing", Path("/bin/bash")])


def test_a_heavy_image_is_the_same_again_and_as_heavy_as_asked(tmp_path: Path) -> None:
    one, two = (heavy_image(tmp_path / name, size_bytes=8_000_000, layers=2) for name in ("one", "two"))
    assert one == two
    blobs = tmp_path / "one/blobs"
    manifest = json.loads((blobs / one.replace(":", "/")).read_text())
    config = json.loads((blobs / manifest["config"]["digest"].replace(":", "/")).read_text())
    assert sum(row["size"] for row in manifest["layers"]) == pytest.approx(8_000_000, rel=0.25)
    for row, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        packed = (blobs / row["digest"].replace(":", "/")).read_bytes()
        assert row == {
            "mediaType": row["mediaType"],
            "digest": f"sha256:{sha256(packed).hexdigest()}",
            "size": len(packed),
        }
        assert f"sha256:{sha256(gzip.decompress(packed)).hexdigest()}" == diff_id
    # What is there is not built again.
    (blobs / manifest["layers"][0]["digest"].replace(":", "/")).unlink()
    assert heavy_image(tmp_path / "one", size_bytes=8_000_000, layers=2) == one
    assert len(list((blobs / "sha256").iterdir())) == 3
