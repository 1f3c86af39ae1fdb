"""What a registry says an image is: indexes, manifests, configurations (OCI image-spec; Docker's schema 2). Pure.

Everything here is somebody else's JSON: each function raises `InvalidArgument` for what makes no sense, with the reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.minirt.errors import InvalidArgument, NotFound
from harness.minirt.images.reference import is_digest

INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
CONFIG_TYPES = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/octet-stream",  # what early tools wrote
    "",
)
LARGEST_CONFIG_BYTES = 8 << 20
_LAYER_MARKS = ("image.layer.", "image.rootfs.")
_MOST_ENTRIES = 1024
_LARGEST_BLOB_BYTES = 1 << 40
_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "i686": "386",
    "ppc64le": "ppc64le",
    "riscv64": "riscv64",
    "s390x": "s390x",
}
_ARM = {"armv7l": ("v7", "v6", "v5"), "armv6l": ("v6", "v5")}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a blob should be: digest and size are checked when it comes. `urls`: where else it may be had."""

    digest: str
    size: int
    media_type: str = ""
    urls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Content:
    """An image's manifest."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


def parse_object(raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object. `what` is for the message."""
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{what} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidArgument(f"{what} is not a JSON object")
    return content


def parse_descriptor(row: Any, what: str) -> Descriptor:
    """OCI image-spec, "Content Descriptors"."""
    if isinstance(row, dict):
        digest, size = row.get("digest"), row.get("size")
        media_type, urls = row.get("mediaType", ""), row.get("urls") or []
        if (
            (isinstance(digest, str) and is_digest(digest))
            and (isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= _LARGEST_BLOB_BYTES)
            and isinstance(media_type, str)
            and _are_texts(urls)
        ):
            return Descriptor(digest, size, media_type, tuple(urls))
    raise InvalidArgument(f"{what} has a malformed descriptor: {row!r:.200}")


def is_index(content: Mapping[str, Any], media_type: str = "") -> bool:
    """Whether this is an index, and not a manifest; the document's own word counts for more than its header's."""
    kind = content.get("mediaType") or media_type
    return kind in INDEX_TYPES or ("manifests" in content and kind not in MANIFEST_TYPES)


def parse_manifest(content: Mapping[str, Any], what: str, media_type: str = "") -> Content:
    """An image's manifest. What is in another format, or no image, is refused by its name."""
    kind = str(content.get("mediaType") or media_type)
    if content.get("schemaVersion") == 1 or "manifest.v1+" in kind.replace("oci.image.manifest.v1+", ""):
        raise InvalidArgument(f"{what} is in Docker's schema 1, which is no longer supported: push the image again")
    if not isinstance(content.get("layers"), list) or "config" not in content:
        raise InvalidArgument(f"{what} is not an image manifest but {kind or 'something without a type'}")
    config = parse_descriptor(content["config"], what)
    if config.media_type not in CONFIG_TYPES:
        raise InvalidArgument(f"{what} is an artifact of type {config.media_type!r}, not an image")
    if not config.digest.startswith("sha256:"):
        raise InvalidArgument(f"{what}: the image's identity {config.digest!r} is not a sha256 digest")
    if config.size > LARGEST_CONFIG_BYTES:
        raise InvalidArgument(f"{what}: a configuration of {config.size} bytes is too large")
    if len(content["layers"]) > _MOST_ENTRIES:
        raise InvalidArgument(f"{what} has {len(content['layers'])} layers")
    layers = tuple(parse_descriptor(row, what) for row in content["layers"])
    for layer in layers:
        if layer.media_type.endswith("+encrypted"):
            raise InvalidArgument(f"{what}: layer {layer.digest} is encrypted, which is not supported")
        if layer.media_type and not any(mark in layer.media_type for mark in _LAYER_MARKS):
            raise InvalidArgument(f"{what}: {layer.media_type!r} is not a type of layer: an artifact, not an image")
    return Content(config, layers)


def platforms(machine: str = "") -> tuple[tuple[str, str], ...]:
    """Architectures and variants that this machine (or `machine`, as uname tells it) runs, the best first."""
    machine = machine or os.uname().machine
    architecture = _ARCHITECTURES.get(machine, machine)
    if architecture == "amd64":
        return (("amd64", ""), ("386", ""))
    if architecture == "arm64":
        return (("arm64", "v8"), *(("arm", variant) for variant in ("v8", *_ARM["armv7l"])))
    if architecture == "arm":
        return tuple(("arm", variant) for variant in _ARM[machine])
    return ((architecture, ""),)


def candidates(content: Mapping[str, Any], what: str, machine: str = "") -> tuple[Descriptor, ...]:
    """The entries of an index that fit this machine, the best first. Those that name no platform come last.

    Raises `NotFound`, with the platforms on offer, where none does.
    """
    rows = content.get("manifests")
    if not isinstance(rows, list) or len(rows) > _MOST_ENTRIES:
        raise InvalidArgument(f"{what} is an index without a list of manifests that makes sense")
    wanted = platforms(machine)
    found: list[tuple[int, Descriptor]] = []
    offered = []
    for row in rows:
        descriptor = parse_descriptor(row, what)
        platform = row.get("platform")
        if platform is None:
            found.append((len(wanted), descriptor))
            continue
        if not isinstance(platform, dict) or not _are_texts(
            [platform.get(key, "") for key in ("os", "architecture", "variant")]
        ):
            raise InvalidArgument(f"{what} is an index with a malformed platform: {platform!r:.200}")
        name, architecture = platform.get("os", "linux"), platform.get("architecture", "")
        variant = _variant(architecture, platform.get("variant", ""))
        if name == "linux" and (architecture, variant) in wanted:
            found.append((wanted.index((architecture, variant)), descriptor))
        offered.append("/".join(part for part in (name, architecture, platform.get("variant", "")) if part))
    if not found:
        raise no_platform(what, offered, machine)
    return tuple(descriptor for _, descriptor in sorted(found, key=lambda pair: pair[0]))


def no_platform(what: str, offered: Sequence[str], machine: str = "") -> NotFound:
    """The error for an image that is made for other machines."""
    return NotFound(
        f"{what}: no image for linux/{platforms(machine)[0][0]}, only for {', '.join(offered) or 'nothing'}"
    )


def parse_config(raw: bytes, what: str) -> dict[str, Any]:
    """An image's configuration, of which the parts that containers are made from have the types that they should have."""
    content = parse_object(raw, f"{what}: the image's configuration")
    problems = list(_config_problems(content))
    if problems:
        raise InvalidArgument(f"{what}: the image's configuration is malformed: {problems[0]}")
    return content


def diff_ids(config: Mapping[str, Any]) -> list[str]:
    """The digests of the layers' plain archives, of a configuration that `parse_config` has passed."""
    found: list[str] = config["rootfs"].get("diff_ids") or []
    return found


def _config_problems(content: Mapping[str, Any]) -> Iterator[str]:
    rootfs = content.get("rootfs")
    layers: Any = rootfs.get("diff_ids") if isinstance(rootfs, dict) else False
    if layers is not None and not (_are_texts(layers) and all(is_digest(item) for item in layers)):
        yield "it has no list of its layers"
    name = content.get("os") or "linux"
    if name != "linux":
        yield f"it is for {name!r:.50}, not for linux"
    config = content.get("config") or {}
    if not isinstance(config, dict):
        yield "config is not an object"
        return
    for key in ("Env", "Cmd", "Entrypoint"):
        if not _are_texts(config.get(key) or []):
            yield f"config.{key} is not a list of strings"
    for key in ("User", "WorkingDir", "StopSignal"):
        if not isinstance(config.get(key) or "", str):
            yield f"config.{key} is not a string"
    for key in ("Labels", "Volumes", "ExposedPorts"):
        if not isinstance(config.get(key) or {}, dict):
            yield f"config.{key} is not an object"


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _variant(architecture: str, variant: str) -> str:
    """Variants that mean the same: arm64 is v8, arm without one is v7, amd64 is v1."""
    if architecture == "arm64":
        return variant or "v8"
    if architecture == "arm":
        return {"": "v7", "5": "v5", "6": "v6", "7": "v7", "8": "v8"}.get(variant, variant)
    return "" if (architecture, variant) == ("amd64", "v1") else variant
