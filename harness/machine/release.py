"""Programs that come as a project's release tarball: download, verify, unpack one program of it, put it on PATH."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from harness.errors import MachineError, UsageError

CRICTL_VERSION = "v1.31.1"
CRICTL_BASE = "https://github.com/kubernetes-sigs/cri-tools/releases/download"

ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64"}
)
"""``uname -m`` as release files call it."""

CRICTL_SHA256: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("v1.31.1", "amd64"): "0a03ba6b1e4c253d63627f8d210b2ea07675a8712587e697657b236d06d7d231",
        ("v1.31.1", "arm64"): "cd70f9b2f75c9619f40450d4b6e2c74aaab619917da517eff6787b442f8b0e56",
    }
)
"""What the project published, by version and architecture. Any other needs its sum from the user."""

LARGEST_BYTES = 300_000_000
"""No release is that large: a download that goes on beyond it is not one."""

Progress = Callable[[int, int | None], None]
"""Told of bytes received so far, and of all that will come where the server says so."""


@dataclass(frozen=True, slots=True)
class Release:
    """One tarball, and the sum that it has to have."""

    program: str
    version: str
    url: str
    sha256: str

    @property
    def file_name(self) -> str:
        return urlsplit(self.url).path.rpartition("/")[2]


def crictl_release(version: str, machine: str, sha256: str = "", base: str = CRICTL_BASE) -> Release:
    """The release of crictl for `machine` (``uname -m``).

    Raises `UsageError` where neither Seatrial nor the caller knows the sum: nothing is installed unverified.
    """
    version = version if version.startswith("v") else f"v{version}"
    architecture = ARCHITECTURES.get(machine, machine)
    url = f"{base}/{version}/crictl-{version}-linux-{architecture}.tar.gz"
    known = sha256.lower().removeprefix("sha256:") or CRICTL_SHA256.get((version, architecture), "")
    if not known:
        raise UsageError(
            f"no sha256 is known for crictl {version} on {architecture}: take it from {url}.sha256 and give it with --sha256"
        )
    if len(known) != 64 or set(known) - set("0123456789abcdef"):
        raise UsageError(f"{sha256!r} is not a sha256: 64 hexadecimal digits are")
    return Release("crictl", version, url, known)


def install_release(release: Release, into: Path, progress: Progress = lambda done, total: None) -> Path:
    """Download, verify, and put the program into the folder `into`, in one step at the end; its path.

    Raises `MachineError`; then `into` is as it was before.
    """
    with tempfile.TemporaryDirectory(prefix="seatrial-setup-") as scratch:
        tarball = Path(scratch) / release.file_name
        download(release, tarball, progress)
        return unpack_program(tarball, release.program, into)


def download(release: Release, target: Path, progress: Progress) -> None:
    """Stream a release into `target` and verify it. Raises `MachineError`: offline, refused, or not the right bytes."""
    import requests

    digest, done = hashlib.sha256(), 0
    try:
        with requests.get(release.url, stream=True, timeout=(10, 30)) as answer, target.open("wb") as file:
            if answer.status_code != 200:
                raise MachineError(f"{release.url} cannot be had: HTTP {answer.status_code}", "is the version right?")
            length = answer.headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else None
            for piece in answer.iter_content(1 << 18):
                done += len(piece)
                if done > LARGEST_BYTES:
                    raise MachineError(f"{release.url} goes on beyond {LARGEST_BYTES} bytes: that is no release")
                digest.update(piece)
                file.write(piece)
                progress(done, total)
    except requests.RequestException as error:
        remedy = f"put {release.program} on PATH yourself, or try again with a network"
        raise MachineError(f"{release.url} cannot be reached ({reason_of(error)})", remedy) from None
    except OSError as error:
        raise MachineError(f"{target.name} cannot be stored: {error.strerror or error}") from None
    if digest.hexdigest() != release.sha256:
        raise MachineError(
            f"{release.file_name} is not what was published: its sha256 is {digest.hexdigest()}, it should be {release.sha256}",
            "nothing was installed",
        )


def unpack_program(tarball: Path, program: str, into: Path) -> Path:
    """Copy the one regular file `program` at the top of `tarball` into the folder `into`, executable; its path.

    Only the bytes of that member are read: names, links, owners and modes of the archive have no effect.
    Raises `MachineError`.
    """
    target = into / program
    try:
        with tarfile.open(tarball, "r:*") as archive:
            source = next((m for m in archive if m.isreg() and m.name.removeprefix("./") == program), None)
            content = archive.extractfile(source) if source else None
            if content is None:
                raise MachineError(f"{tarball.name} has no file {program}", "nothing was installed")
            into.mkdir(parents=True, exist_ok=True)
            with content, tempfile.NamedTemporaryFile(dir=into, prefix=f".{program}-", delete=False) as file:
                try:
                    shutil.copyfileobj(content, file)
                    file.flush()
                    os.fchmod(file.fileno(), 0o755)
                    Path(file.name).replace(target)
                except BaseException:
                    Path(file.name).unlink(missing_ok=True)
                    raise
    except (tarfile.TarError, EOFError, OSError) as error:
        raise MachineError(f"{program} cannot be unpacked into {into}: {error}", "nothing was installed") from None
    return target


def reason_of(error: BaseException) -> str:
    """The innermost reason of a network error, which the layers above have wrapped in their own names."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        inner = getattr(current, "reason", None) or next(
            (a for a in current.args if isinstance(a, BaseException)), None
        )
        current = inner if isinstance(inner, BaseException) else (current.__cause__ or current.__context__)
    for found in reversed(seen):
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
    return type(error).__name__
