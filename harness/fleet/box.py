"""Boxes: Debian's own packages made into a disk that Vagrant starts, kept in a cache under the hash of their recipe."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import os
import platform
import shlex
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import paths
from harness.command import HostRunner
from harness.errors import CommandError, MachineError
from harness.fleet.definition import OWN, Recipe
from harness.fleet.lines import NEVER, Recall, Say, follow
from harness.fleet.room import require_disk

FORM = 1
"""Counts up when boxes are made in another way: those made before are then made anew."""
EPOCH = 1577836800
"""No file of a box is newer (2020-01-01): packages of the same versions give the same content whenever they are unpacked."""
PROGRAMS = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "qemu-img": "qemu-utils"}
LEAVE_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/lintian/*")
ROOM_BYTES = 6 << 30
"""taken on disk while a box is made"""
VAGRANTFILE = """\
# What is true of this box wherever it is used: it has no boot loader, the hypervisor starts its kernel.
Vagrant.configure("2") do |config|
  config.ssh.insert_key = false
  # Else Vagrant asks the machine dozens of questions to find out.
  config.vm.guest = :debian
  config.vm.synced_folder ".", "/vagrant", disabled: true
  config.vm.provider :libvirt do |libvirt|
    libvirt.kernel = File.join(__dir__, "vmlinuz")
    libvirt.initrd = File.join(__dir__, "initrd.img")
    libvirt.cmd_line = "root=/dev/vda rw console=ttyS0 quiet systemd.ssh_auto=no"
  end
end
"""


@dataclass(frozen=True, slots=True)
class Box:
    """A box that is there."""

    recipe: Recipe
    path: Path
    """the ``.box`` file"""
    content: str
    """SHA-256 of the root file system as a tar: the same for the same packages"""
    size_bytes: int
    built_s: float
    """when, seconds since 1970"""

    @property
    def name(self) -> str:
        """By which Vagrant knows it: another one as soon as its recipe is another."""
        return OWN + self.path.stem

    @property
    def kernel(self) -> Path:
        return self.path.with_suffix(".vmlinuz")

    @property
    def initrd(self) -> Path:
        return self.path.with_suffix(".initrd")


def cache() -> Path:
    """Where boxes and what is shipped to machines are kept: ``SEATRIAL_CACHE``, by default ``/var/cache/seatrial``."""
    return Path(os.environ.get("SEATRIAL_CACHE") or "/var/cache/seatrial")


def digest(recipe: Recipe) -> str:
    """What a box is kept under: changes with everything that its content is made from, but for the packages' versions."""
    parts = hashlib.sha256(
        json.dumps([FORM, dataclasses.asdict(recipe), LEAVE_OUT, VAGRANTFILE, platform.machine()]).encode()
    )
    folder = paths.vagrant()
    for file in (folder / "settle.sh", *sorted(path for path in (folder / "guest").rglob("*") if path.is_file())):
        parts.update(f"\0{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return parts.hexdigest()[:12]


def find_box(recipe: Recipe) -> Box | None:
    """The box in the cache; None where it was not built yet, or from another recipe."""
    path = _path(recipe)
    try:
        facts = json.loads(path.with_suffix(".json").read_bytes())
        size = path.stat().st_size
    except (FileNotFoundError, ValueError):
        return None
    return Box(recipe, path, facts["content"], size, facts["built_s"])


def build_box(recipe: Recipe, say: Say, *, fresh: bool = False, recall: Recall = NEVER) -> Box:
    """The box in the cache; made first where it is not there, or in any case where `fresh`.

    Whoever wants the same box meanwhile waits for it. Raises `MachineError` where a program or room is lacking, and
    `CommandError`; nothing is left of a box that could not be made.
    """
    with _alone(recipe, say):
        found = find_box(recipe)
        if found and not fresh:
            return found
        missing = sorted({package for program, package in PROGRAMS.items() if not shutil.which(program)})
        if missing:
            raise MachineError(f"a box is made with {' and '.join(missing)}", "seatrial setup vm")
        require_disk(cache(), ROOM_BYTES, f"the box {recipe.name}")
        with tempfile.TemporaryDirectory(prefix=".building-", dir=cache() / "boxes") as folder:
            return _build(recipe, Path(folder), say, recall)


def _build(recipe: Recipe, work: Path, say: Say, recall: Recall) -> Box:
    runner = HostRunner()
    root = work / "root.tar"
    say(f"unpacking {len(recipe.packages)} packages of {recipe.suite} and what they need")
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH), "LC_ALL": "C.UTF-8", "TMPDIR": str(work)}
    work.chmod(0o755)
    follow(
        runner,
        _bootstrap(recipe, root, work),
        lambda line: say(line.removeprefix("I: ")),
        timeout_s=1800,
        env=env,
        recall=recall,
    )
    with root.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()

    say("making the file system")
    tree = work / "root"
    tree.mkdir()
    runner.run(
        ("tar", "-xf", str(root), "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", str(tree)), timeout_s=600
    ).check()
    root.unlink()
    for link, name in (("vmlinuz", "vmlinuz"), ("initrd.img", "initrd.img")):
        # A link that is absolute inside the tree.
        shutil.copyfile(tree / str((tree / link).readlink()).lstrip("/"), work / name)
    manifest = (
        runner.run(
            ("dpkg-query", f"--admindir={tree}/var/lib/dpkg", "-W", "-f", "${Package} ${Version}\\n"), timeout_s=60
        )
        .check()
        .text
    )
    raw = work / "root.img"
    with raw.open("wb") as file:
        file.truncate(recipe.disk_gb << 30)
    # The file is new, hence zero already: nothing has to be written in the background when the machine runs.
    options = ("-t", "ext4", "-q", "-F", "-m", "0", "-L", "root", "-E", "assume_storage_prezeroed=1", "-d", str(tree))
    runner.run(("mke2fs", *options, str(raw)), timeout_s=600).check()
    shutil.rmtree(tree)

    say("compressing the disk")
    disk = work / "box.img"
    runner.run(
        (
            "qemu-img",
            "convert",
            "-c",
            "-O",
            "qcow2",
            "-o",
            "compression_type=zstd",
            "-m",
            "8",
            "-W",
            str(raw),
            str(disk),
        ),
        timeout_s=900,
    ).check()
    raw.unlink()

    say("packing the box")
    path = _path(recipe)
    facts = {"content": content, "built_s": time.time(), "recipe": recipe.name, "packages": manifest.splitlines()}
    about = {"provider": "libvirt", "format": "qcow2", "virtual_size": recipe.disk_gb}
    texts = {
        "metadata.json": json.dumps(about),
        "Vagrantfile": VAGRANTFILE,
        "info.json": json.dumps({"content": content}),
    }
    draft = work / "draft.box"
    with tarfile.open(draft, "w") as box:
        for name, text in texts.items():
            _add(box, name, text.encode())
        for name in ("vmlinuz", "initrd.img", "box.img"):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = (work / name).stat().st_size, EPOCH
            with (work / name).open("rb") as file:
                box.addfile(entry, file)
    for old in path.parent.glob(f"{recipe.name}-*"):
        if old.stem.rpartition("-")[0] == recipe.name:
            old.unlink()
    (work / "vmlinuz").replace(path.with_suffix(".vmlinuz"))
    (work / "initrd.img").replace(path.with_suffix(".initrd"))
    draft.replace(path)
    facts_draft = work / "facts"
    facts_draft.write_text(json.dumps(facts, indent=1))
    facts_draft.replace(path.with_suffix(".json"))
    _point(path.with_name(f"{recipe.name}.box"), path)
    return Box(recipe, path, content, path.stat().st_size, facts["built_s"])  # type: ignore[arg-type]


def _bootstrap(recipe: Recipe, target: Path, work: Path) -> Sequence[str]:
    folder = paths.vagrant()
    guest, settle = shlex.quote(str(folder / "guest" / "etc")), shlex.quote(str(folder / "settle.sh"))
    key = work / "vagrant.pub"
    key.write_text(vagrant_key())
    hooks = (
        f"copy-in {guest} /",
        'mkdir -p "$1/etc/seatrial"',
        f"upload {shlex.quote(str(key))} /etc/seatrial/vagrant.pub",
        f'chroot "$1" sh -s <{settle}',
    )
    return (
        *("mmdebstrap", "--variant=minbase", f"--include={','.join(recipe.packages)}"),
        # An archive that is kept as it was on one day serves those best who want the same box again.
        '--aptopt=Acquire::Check-Valid-Until "false"',
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEAVE_OUT),
        *(f"--customize-hook={hook}" for hook in hooks),
        *(recipe.suite, str(target), *_mirror()),
    )


def vagrant_key() -> str:
    """The public key that Vagrant itself uses for machines of a private network (its "insecure" key). Raises `MachineError`."""
    for folder in (
        "/usr/share/rubygems-integration/all/gems",
        "/opt/vagrant/embedded/gems/gems",
        "/opt/vagrant/embedded/gems",
    ):
        for path in sorted(Path(folder).glob("**/vagrant-[0-9]*/keys/vagrant.pub")):
            return path.read_text()
    raise MachineError("Vagrant's public key is not to be found: a box would let nobody in", "seatrial setup vm")


def _mirror() -> tuple[str, ...]:
    """Debian's archive as this machine knows it; nothing where it knows none (mmdebstrap has its own idea then)."""
    argv = ("apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL)", "Created-By: Packages")
    try:
        lines = HostRunner().run(argv, timeout_s=60).check().text.splitlines()
    except (CommandError, MachineError):
        return ()
    found = [line.split()[0] for line in lines if line.split()[1:] == ["Debian", "Debian"]]
    return tuple(found[:1])


def _path(recipe: Recipe) -> Path:
    return cache() / "boxes" / f"{recipe.name}-{digest(recipe)}.box"


def _add(box: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime = len(data), EPOCH
    box.addfile(entry, io.BytesIO(data))


def _point(link: Path, target: Path) -> None:
    """Have `link` lead to `target`, beside it, in one step."""
    draft = link.with_name(f".{link.name}.{os.getpid()}")
    draft.symlink_to(target.name)
    draft.replace(link)


@contextlib.contextmanager
def _alone(recipe: Recipe, say: Say) -> Iterator[None]:
    """One at a time makes this box."""
    folder = cache() / "boxes"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder / f".{recipe.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise MachineError(
            f"boxes cannot be kept in {folder}: {error.strerror}", "name another folder in SEATRIAL_CACHE"
        ) from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another seatrial that makes the box {recipe.name}")
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
