"""Unpack a test image: the root filesystem for subjects that have no images."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path


def unpack(folder: Path, name: str, into: Path) -> None:
    """Unpack image `name` of `folder` (see `harness.image.build.write_images`) into the new folder `into`.

    For images that we built ourselves: no whiteouts. Raises `KeyError` for a name that is not there.
    """
    blobs = folder / "blobs"
    digest = json.loads((folder / "manifests.json").read_text())[name]["digest"]
    manifest = json.loads((blobs / digest.replace(":", "/")).read_text())
    into.mkdir(parents=True)
    for layer in manifest["layers"]:
        with tarfile.open(blobs / layer["digest"].replace(":", "/"), "r:gz") as tar:
            if hasattr(tarfile, "tar_filter"):  # Debian 12's Python 3.11.2 came before filters
                tar.extraction_filter = tarfile.tar_filter
            tar.extractall(into)
    # The filter takes the sticky bit off, with the set-id bits.
    if (into / "tmp").is_dir():
        (into / "tmp").chmod(0o1777)
