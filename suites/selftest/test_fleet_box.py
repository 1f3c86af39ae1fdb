"""harness.fleet.box and accelerator: what a box is made from, and how it is found out what runs it; the tools are stand-ins."""

from __future__ import annotations

import dataclasses
import json
import os
import tarfile
from pathlib import Path

import pytest

from harness.errors import CommandError, MachineError
from harness.fleet import accelerator, box
from harness.fleet.accelerator import Kind, find_accelerator, probe
from harness.fleet.box import Box, build_box, digest, find_box
from harness.fleet.definition import Recipe
from harness.fleet.vagrant import _reason, forget_boxes

RECIPE = Recipe("small", "trixie", ("a", "b"), 1)
MMDEBSTRAP = """#!/bin/sh
echo "I: $@" >&2
[ -e "$FAIL" ] && { echo "E: no such package" >&2; exit 1; }
for word; do last=$target; target=$word; case $word in *root.tar) break; esac; done
root=$(mktemp -d); mkdir -p $root/boot $root/var/lib/dpkg
echo kernel >$root/boot/k; echo initrd >$root/boot/i
ln -s boot/k $root/vmlinuz; ln -s /boot/i $root/initrd.img
printf 'Package: a\\nStatus: install ok installed\\nVersion: 1\\nArchitecture: all\\nMaintainer: x\\nDescription: x\\n' >$root/var/lib/dpkg/status
tar -C $root --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf $target . ; rm -r $root
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH with an mmdebstrap that makes a tiny system; the cache is the test's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    put(folder / "mmdebstrap", MMDEBSTRAP)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}:/usr/sbin:/sbin")
    monkeypatch.setenv("SEATRIAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FAIL", str(tmp_path / "fail"))
    monkeypatch.setattr(box, "vagrant_key", lambda: "ssh-rsa AAAA key\n")
    return folder


def put(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def build(**how: bool) -> Box:
    return build_box(RECIPE, lambda line: None, **how)


needs_qemu_img = pytest.mark.skipif(
    not any(Path(folder, "qemu-img").exists() for folder in ("/usr/bin", "/usr/local/bin")),
    reason="there is no qemu-img: seatrial setup vm",
)


@needs_qemu_img
def test_a_box_has_what_vagrant_needs_and_is_kept(tools: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    made = build_box(RECIPE, heard.append)
    with tarfile.open(made.path) as archive:
        assert archive.getnames() == ["metadata.json", "Vagrantfile", "info.json", "vmlinuz", "initrd.img", "box.img"]
        about = archive.extractfile("metadata.json")
        assert about is not None and json.load(about) == {"provider": "libvirt", "format": "qcow2", "virtual_size": 1}
    assert made.kernel.read_text() == "kernel\n" and made.initrd.read_text() == "initrd\n"
    assert any("--include=a,b" in line for line in heard)
    assert json.loads(made.path.with_suffix(".json").read_bytes())["packages"] == ["a 1"]
    inode = made.path.stat().st_ino
    assert find_box(RECIPE) == build() == made
    assert made.path.stat().st_ino == inode
    assert made.name == f"seatrial/{made.path.stem}"
    assert (made.path.parent / "small.box").resolve() == made.path


@needs_qemu_img
def test_the_same_packages_give_the_same_content(tools: Path) -> None:
    first = build()
    second = build(fresh=True)
    assert second.content == first.content
    assert second.built_s > first.built_s


@needs_qemu_img
def test_a_box_that_cannot_be_made_leaves_nothing_and_the_old_one_stays(tools: Path, tmp_path: Path) -> None:
    old = build()
    (tmp_path / "fail").touch()
    with pytest.raises(CommandError, match="no such package"):
        build(fresh=True)
    assert find_box(RECIPE) == old
    assert not list(old.path.parent.glob(".building-*"))


def test_what_makes_boxes_is_not_there(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(MachineError, match=r"a box is made with e2fsprogs and qemu-utils; seatrial setup vm"):
        build()


def test_the_name_in_the_cache_changes_with_everything_it_is_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {digest(RECIPE)}
    for change in ({"suite": "sid"}, {"packages": ("a",)}, {"disk_gb": 2}):
        names.add(digest(dataclasses.replace(RECIPE, **change)))  # type: ignore[arg-type]
    (tmp_path / "guest/etc").mkdir(parents=True)
    (tmp_path / "settle.sh").write_text("true\n")
    monkeypatch.setenv("SEATRIAL_VAGRANT", str(tmp_path))
    names.add(digest(RECIPE))
    (tmp_path / "guest/etc/file").write_text("x")
    names.add(digest(RECIPE))
    (tmp_path / "settle.sh").write_text("false\n")
    names.add(digest(RECIPE))
    assert len(names) == 7
    assert digest(RECIPE) in names


BOOTS = '#!/bin/sh\necho "Command line: $@"\necho "it boots: $((6*7))"\n'
FAILS = "#!/bin/sh\necho \"Command line: $@\"\necho 'kvm: unhandled exit' >&2\nexit 1\n"
HANGS = "#!/bin/sh\nexec sleep 60\n"


@pytest.mark.parametrize(
    ("script", "why"),
    [(BOOTS, ""), (FAILS, "kvm: unhandled exit"), (HANGS, "did not come up under KVM within 0.5 s")],
)
def test_a_boot_tells_what_runs_machines(tmp_path: Path, script: str, why: str) -> None:
    put(tmp_path / "qemu", script)
    said = probe(
        str(tmp_path / "qemu"), Box(RECIPE, tmp_path / "x.box", "", 0, 0.0), "kvm", 0.5 if script == HANGS else 20
    )
    assert why in said and bool(said) == bool(why)


def test_without_kvm_machines_are_emulated_with_a_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "find_qemu", lambda: "qemu")
    found = find_accelerator(Box(RECIPE, tmp_path / "x.box", "", 0, 0.0), tmp_path / "kvm")
    assert (found.kind, found.kind.driver) == (Kind.TCG, "qemu")
    assert "wall times are only ratios" in found.notice


def test_what_was_found_out_is_asked_once_a_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kvm = tmp_path / "kvm"
    kvm.touch()
    put(tmp_path / "qemu", f"#!/bin/sh\necho x >>{tmp_path}/asked\necho it boots: 42\n")
    monkeypatch.setenv("SEATRIAL_CACHE", str(tmp_path))
    monkeypatch.setattr(accelerator, "find_qemu", lambda: str(tmp_path / "qemu"))
    some = Box(RECIPE, tmp_path / "x.box", "", 0, 0.0)
    assert [find_accelerator(some, kvm).kind for _ in range(2)] == [Kind.KVM, Kind.KVM]
    assert (tmp_path / "asked").read_text() == "x\n"
    monkeypatch.setattr(accelerator, "BOOT_ID", tmp_path / "boot")
    (tmp_path / "boot").write_text("another")
    find_accelerator(some, kvm)
    assert (tmp_path / "asked").read_text() == "x\nx\n"


def test_a_public_box_is_run_as_others_were_found_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel is on its disk: it cannot be booted beforehand."""
    kvm = tmp_path / "kvm"
    monkeypatch.setenv("SEATRIAL_CACHE", str(tmp_path))
    monkeypatch.setattr(accelerator, "find_qemu", lambda: str(tmp_path / "qemu"))
    assert find_accelerator(None, kvm).kind is Kind.TCG
    kvm.touch()
    assert find_accelerator(None, kvm).kind is Kind.KVM
    put(tmp_path / "qemu", FAILS)
    find_accelerator(Box(RECIPE, tmp_path / "x.box", "", 0, 0.0), kvm)
    assert find_accelerator(None, kvm).kind is Kind.TCG


def test_copies_of_older_boxes_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEATRIAL_CACHE", str(tmp_path))
    (tmp_path / "boxes").mkdir()
    (tmp_path / "boxes/small.box").symlink_to("small-22.box")
    copies = tmp_path / "vagrant.d/boxes"
    for name in ("small-11", "small-22", "small-other-11"):
        (copies / f"seatrial-VAGRANTSLASH-{name}" / "0").mkdir(parents=True)
    forget_boxes("small")
    assert {folder.name.rpartition("SLASH-")[2] for folder in copies.iterdir()} == {"small-22", "small-other-11"}


def test_vagrants_reason_is_what_it_wrote_below_its_progress() -> None:
    said = "==> trixie: Starting domain.\n    trixie: more\nThere was an error talking to Libvirt.\nThe error message is shown below:\n"
    assert _reason(said) == "There was an error talking to Libvirt.\nThe error message is shown below:"
