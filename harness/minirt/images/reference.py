"""Names of images, as docker and containerd normalise them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.minirt.errors import InvalidArgument

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"

_DOMAIN = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?"
)
_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")
_LONGEST = 4096


@dataclass(frozen=True, slots=True)
class Reference:
    """One image in one repository. With a digest there is no tag: a digest says more than a tag can."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def repository(self) -> str:
        return f"{self.domain}/{self.path}"

    @property
    def target(self) -> str:
        """What is asked of the registry: the digest, or the tag."""
        return self.digest or self.tag

    def __str__(self) -> str:
        return f"{self.repository}@{self.digest}" if self.digest else f"{self.repository}:{self.tag}"

    def with_digest(self, digest: str) -> str:
        """The same repository, pinned to `digest`."""
        return f"{self.repository}@{digest}"


def is_digest(text: str) -> bool:
    """Whether `text` is a whole digest of an algorithm that we can check."""
    return _DIGEST.fullmatch(text) is not None


def is_image_id(text: str) -> bool:
    """Whether `text` is an image's identity (the digest of its configuration), with or without its algorithm."""
    return _DIGEST.fullmatch(text) is not None or _IMAGE_ID.fullmatch(text) is not None


def parse_reference(text: str) -> Reference:
    """`text` with the defaults filled in: ``busybox`` is ``docker.io/library/busybox:latest``.

    Raises `InvalidArgument` for what cannot be a name.
    """
    if not text or len(text) > _LONGEST:
        raise InvalidArgument(f"an image name has 1 to {_LONGEST} characters, this one {len(text)}")
    rest, _, digest = text.partition("@")
    if "@" in text and not is_digest(digest):
        raise InvalidArgument(f"image {text!r}: {digest!r} is not a digest that can be checked")
    first, slash, remainder = rest.partition("/")
    if slash and (any(mark in first for mark in ".:") or first == "localhost" or first.lower() != first):
        domain, rest = first, remainder
    else:
        domain = DEFAULT_DOMAIN
    if domain == "index.docker.io":
        domain = DEFAULT_DOMAIN
    path, colon, tag = rest.partition(":")
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = f"library/{path}"
    if not _DOMAIN.fullmatch(domain) or not _PATH.fullmatch(path) or (colon and not _TAG.fullmatch(tag)):
        raise InvalidArgument(f"{text!r} is not an image name")
    return Reference(domain, path, "" if digest else tag or DEFAULT_TAG, digest)
