"""The test images, built from a static busybox: same busybox, same digests, on every machine."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import paths
from harness.errors import MachineError
from harness.image.layer import LAYER_TYPE, Blob, Entry, Layer, build_layer

BUSYBOX_PATHS = (Path("/bin/busybox"), Path("/usr/bin/busybox"), Path("/usr/lib/busybox-static/busybox"))
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
DOCKER_TYPES: Mapping[str, str] = {
    MANIFEST_TYPE: "application/vnd.docker.distribution.manifest.v2+json",
    INDEX_TYPE: "application/vnd.docker.distribution.manifest.list.v2+json",
    CONFIG_TYPE: "application/vnd.docker.container.image.v1+json",
    LAYER_TYPE: "application/vnd.docker.image.rootfs.diff.tar.gzip",
}
ARCHITECTURES = {62: "amd64", 183: "arm64", 243: "riscv64", 22: "s390x", 21: "ppc64le"}
"""GOARCH by ELF e_machine"""


@dataclass(frozen=True, slots=True)
class Image:
    """A test image: its name as ``repository:tag``, and every blob it consists of, the manifest last."""

    name: str
    blobs: tuple[Blob, ...]
    architecture: str = ""
    """empty for an index"""

    @property
    def manifest(self) -> Blob:
        return self.blobs[-1]


def busybox_path(candidates: Sequence[Path] = BUSYBOX_PATHS) -> Path:
    """The machine's static busybox. Raises `MachineError`."""
    for path in candidates:
        if path.is_file() and _is_static(path):
            return path
    raise MachineError(
        "there is no static busybox here to build the test images from", "apt-get install busybox-static"
    )


def build_images(busybox: Path) -> list[Image]:
    """Build every image that ``fixtures/images.json`` defines around the program `busybox`."""
    program = busybox.read_bytes()
    architecture = program_architecture(program)
    data = json.loads((paths.fixtures() / "images.json").read_text())
    layers = {name: build_layer(_entries(rows, program)) for name, rows in data["layers"].items()}
    images: list[Image] = []
    for row in data["images"]:
        own = dict(layers)
        if "packing" in row:
            last = row["layers"][-1]
            own[last] = build_layer(_entries(data["layers"][last], program), row["packing"])
        images.append(_image(row, own, row.get("architecture", architecture)))
    by_name = {image.name: image for image in images}
    return images + [_index(row, [by_name[name] for name in row["images"]]) for row in data["indexes"]]


def write_images(folder: Path, busybox: Path | None = None) -> dict[str, str]:
    """Write all images into `folder`, in the way that `harness.image.server` serves; manifest digests by name.

    ``<folder>/blobs/sha256/<hex>`` holds contents, ``<folder>/manifests.json`` what each name stands for.
    """
    images = build_images(busybox or busybox_path())
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for image in images:
        for blob in image.blobs:
            (blobs / blob.digest.removeprefix("sha256:")).write_bytes(blob.data)
    manifests = {image.name: image.manifest.digest for image in images}
    (folder / "manifests.json").write_text(
        json.dumps(
            {image.name: {"digest": image.manifest.digest, "type": image.manifest.media_type} for image in images}
        )
    )
    return manifests


def _entries(rows: Sequence[Mapping[str, object]], busybox: bytes) -> list[Entry]:
    entries = []
    for row in rows:
        path = str(row["path"])
        mode = int(str(row.get("mode", "755")), 8)
        if "busybox" in row:
            entries.append(Entry(path, mode, busybox))
        elif "applets" in row:
            # Hard links, not symbolic ones: a test that masks or replaces one applet must not hit them all.
            entries.extend(Entry(f"{path}/{applet}", link="bin/busybox") for applet in str(row["applets"]).split())
        elif "text" in row:
            entries.append(Entry(path, mode, str(row["text"]).encode()))
        else:
            entries.append(Entry(path, mode))
    return entries


def _image(row: Mapping[str, Any], layers: Mapping[str, Layer], architecture: str) -> Image:
    used = [layers[name] for name in row["layers"]]
    kinds = DOCKER_TYPES if row.get("types") == "docker" else {}
    diff_ids = [layer.diff_id for layer in used]
    if row.get("forged"):
        diff_ids[-1] = f"sha256:{'0' * 64}"
    config = Blob(
        _json(
            {
                "architecture": architecture,
                "os": "linux",
                "config": row["config"],
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
                "history": [{"created_by": f"seatrial {name}"} for name in row["layers"]],
            }
        ),
        kinds.get(CONFIG_TYPE, CONFIG_TYPE),
    )
    blobs = [Blob(layer.blob.data, kinds.get(layer.blob.media_type, layer.blob.media_type)) for layer in used]
    kind = kinds.get(MANIFEST_TYPE, MANIFEST_TYPE)
    manifest = Blob(
        _json(
            {
                "schemaVersion": 2,
                "mediaType": kind,
                "config": config.descriptor(),
                "layers": [blob.descriptor() for blob in blobs],
            }
        ),
        kind,
    )
    return Image(row["name"], (*blobs, config, manifest), architecture)


def _index(row: Mapping[str, Any], images: Sequence[Image]) -> Image:
    kind = DOCKER_TYPES[INDEX_TYPE] if row.get("types") == "docker" else INDEX_TYPE
    manifests = [
        image.manifest.descriptor() | {"platform": {"os": "linux", "architecture": image.architecture}}
        for image in images
    ]
    return Image(row["name"], (Blob(_json({"schemaVersion": 2, "mediaType": kind, "manifests": manifests}), kind),))


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _is_static(program: Path) -> bool:
    """Whether an ELF program has no interpreter, hence needs no library (elf(5): no program header PT_INTERP)."""
    with program.open("rb") as file:
        header = file.read(64)
        if header[:5] != b"\x7fELF\x02" or len(header) < 64:
            return False
        (offset,) = struct.unpack_from("<Q", header, 32)
        size, count = struct.unpack_from("<HH", header, 54)
        file.seek(offset)
        table = file.read(size * count)
    return all(struct.unpack_from("<I", table, size * index)[0] != 3 for index in range(count))


def program_architecture(program: bytes) -> str:
    """GOARCH of an ELF program. Raises `MachineError` for a machine that is not known."""
    (machine,) = struct.unpack_from("<H", program, 18)
    try:
        return ARCHITECTURES[machine]
    except KeyError:
        raise MachineError(f"busybox is for an unknown kind of machine (ELF e_machine {machine})") from None
