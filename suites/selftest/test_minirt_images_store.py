"""What stays of images: names that move, pins, damage, crashes, power losses, full disks."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from minirt_images import LAYERS, Bench, bench_on
from minirt_registry import tar_of

from harness.linux import syscalls
from harness.minirt.errors import Exhausted, NotFound
from harness.minirt.images.room import Room
from harness.minirt.images.snapshot import Snapshots, Usage, measure
from harness.minirt.images.store import ImageStore


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with bench_on(tmp_path) as bench:
        bench.registry.add_image("a", "1", LAYERS, {"User": "alice"})
        yield bench


def reopened(bench: Bench, boot: str = "") -> ImageStore:
    """What a daemon finds that is started now."""
    bench.snapshots.settle()
    return ImageStore(bench.root, Snapshots(bench.root, boot))


# -- names -------------------------------------------------------------------------------------------------------------


def test_names_of_one_image(bench: Bench) -> None:
    bench.registry.add_image("b", "2", LAYERS, {"User": "alice"})
    one, two = bench.pull("a:1"), bench.pull("b:2")
    assert one == two
    (image,) = bench.store.list()
    assert [tag.rpartition("/")[2] for tag in image.tags] == ["a:1", "b:2"]
    assert len(image.digests) == 2
    # Any of its names removes the image with all of them.
    bench.store.remove(image.tags[1])
    assert bench.store.list() == []
    assert bench.left() == []


def test_a_tag_moves_and_leaves_its_digest_behind(bench: Bench) -> None:
    old = bench.store.get(bench.pull("a:1"))
    bench.registry.add_image("a", "1", LAYERS[:1])
    new = bench.store.get(bench.pull("a:1"))
    assert bench.store.get(old.id).tags == ()
    assert bench.store.get(old.id).digests == old.digests
    assert bench.store.get(new.tags[0]).id == new.id
    store = reopened(bench)
    assert {image.id: image.tags for image in store.list()} == {old.id: (), new.id: new.tags}


def test_a_pin(bench: Bench, tmp_path: Path) -> None:
    identity = bench.pull("a:1")
    name = f"{bench.registry.address}/a:1"
    assert not bench.store.get(identity).pinned
    store = ImageStore(bench.root, bench.snapshots, ["", name])
    assert store.get(identity).pinned
    # The tag moves away, and the pin with it.
    bench.store, bench.puller._store = store, store
    bench.registry.add_image("a", "1", LAYERS[:1])
    new = bench.pull("a:1")
    assert [store.get(identity).pinned, store.get(new).pinned] == [False, True]


# -- damage ------------------------------------------------------------------------------------------------------------


def blob(bench: Bench, identity: str) -> Path:
    return bench.root / "images/blobs/sha256" / identity.removeprefix("sha256:")


def test_a_damaged_configuration_is_found_and_healed(bench: Bench) -> None:
    identity = bench.pull("a:1")
    blob(bench, identity).write_bytes(b"{}")
    store = reopened(bench)
    assert store.list() == []
    assert f"{bench.registry.address}/a:1 is forgotten" in store.damage
    bench.store._configs.clear()
    with pytest.raises(NotFound, match="damaged: pull it again"):
        bench.store.config(bench.store.get(identity))
    assert bench.store.find(identity) is None
    assert bench.pull("a:1") == identity
    assert bench.store.config(bench.store.get(identity))["config"] == {"User": "alice"}


@pytest.mark.parametrize("harm", ["fs", "layer.json", ""])
def test_a_damaged_layer_is_found_and_healed(bench: Bench, harm: str) -> None:
    image = bench.store.get(bench.pull("a:1"))
    folder = Path(bench.snapshots.layers(image.chain)[0]).parent
    bench.snapshots.settle()
    if harm == "layer.json":
        (folder / harm).write_text('{"chain_id": ')
    else:
        shutil.rmtree(folder / harm)
    if harm != "layer.json":  # which only a restarted daemon reads
        with pytest.raises(NotFound, match="gone or damaged: pull it again"):
            bench.store.get(image.id)
        with pytest.raises(NotFound, match="gone or damaged"):
            bench.snapshots.prepare("c", image.chain)
    store = reopened(bench)
    assert store.list() == []
    again = Bench(bench.root, bench.registry, bench.hosts)
    bench.registry.requests.clear()
    again.pull("a:1")
    assert again.store.get(image.id).chain == image.chain
    assert Path(again.snapshots.layers(image.chain)[0], "two").read_bytes() == b"22"
    assert sum("/blobs/" in path for path in bench.registry.requests) == 1
    again.close()


def test_a_killed_pull_leaves_nothing_for_the_next_daemon(bench: Bench) -> None:
    image = bench.store.get(bench.pull("a:1"))
    (bench.root / "images/.index.json.1234").write_text("half")
    (bench.root / "images/blobs/sha256/.half").write_text("half")
    (bench.root / "layers/tmp-1/fs").mkdir(parents=True)
    shutil.copytree(bench.root / "layers" / image.chain[0][7:23], bench.root / "layers/0123456789abcdef")
    (bench.root / "layers/stranger").mkdir()
    store = reopened(bench)
    store.collect()
    assert len(bench.left()) == len(image.chain) + len(image.blobs)
    assert not list((bench.root / "images").glob(".index*"))
    assert store.list() == [image]


def test_after_a_power_loss_what_was_not_synced_is_not_trusted(bench: Bench) -> None:
    image = bench.store.get(bench.pull("a:1"))
    assert Snapshots(bench.root).has(image.chain[0])  # the same boot: only the daemon was killed
    snapshots = Snapshots(bench.root, "another boot")
    assert not any(snapshots.has(chain_id) for chain_id in image.chain)
    store = ImageStore(bench.root, snapshots)
    assert store.list() == []
    assert "pull it again" in store.damage


def test_after_a_power_loss_what_was_synced_is_there(bench: Bench) -> None:
    image = bench.store.get(bench.pull("a:1"))
    bench.snapshots.settle()
    assert reopened(bench, "another boot").list() == [image]


# -- space -------------------------------------------------------------------------------------------------------------


def test_usage_is_what_is_on_the_disk(bench: Bench) -> None:
    assert bench.snapshots.usage() == Usage(0, 0)
    image = bench.store.get(bench.pull("a:1"))
    folders = [Path(folder) for folder in bench.snapshots.layers(image.chain)]
    truth = [measure(folder) for folder in folders]
    assert bench.snapshots.usage() == Usage(sum(row.bytes for row in truth), sum(row.inodes for row in truth))
    bench.store.remove(image.id)
    assert bench.snapshots.usage() == Usage(0, 0)


def test_usage_stays_true_over_many_pulls_and_removals(bench: Bench) -> None:
    shared = tar_of(("shared", os.urandom(50_000)))
    for number in range(50):
        own = tar_of((f"own{number}", os.urandom(5_000)), ("lib/x", b""))
        bench.registry.add_image("a", str(number), [shared, own], compress=False)
        bench.pull(f"a:{number}")
        if number % 3:
            bench.store.remove(f"{bench.registry.address}/a:{number - number % 2}")
    images = bench.store.list()
    assert len(images) > 10
    words = ["du", "--summarize", "--block-size=1", str(bench.root / "layers")]
    truth = int(subprocess.run(words, check=True, capture_output=True, text=True, timeout=30).stdout.split()[0])
    count = len({chain_id for image in images for chain_id in image.chain})
    # Besides what is in it, each layer has a folder and a record, of a block each.
    assert truth - count * 3 * 4096 <= bench.snapshots.usage().bytes <= truth
    for image in images:
        bench.store.remove(image.id)
    assert bench.snapshots.usage() == Usage(0, 0)
    assert bench.left() == []


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Bench]:
    """On a disk of 8 MB and 300 inodes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    syscalls.mount("seatrial-test", str(disk), "tmpfs", 0, "size=8m,nr_inodes=300")
    try:
        with bench_on(disk) as bench:
            yield bench
    finally:
        syscalls.umount2(str(disk), syscalls.MNT_DETACH)


def test_an_image_that_the_disk_cannot_hold_is_refused_beforehand(small: Bench) -> None:
    small.registry.add_image("a", "1", [tar_of(("noise", os.urandom(9_000_000)))])
    with pytest.raises(Exhausted, match="are needed"):
        small.pull("a:1")
    assert small.left() == []


def test_a_disk_that_fills_up_while_unpacking(small: Bench) -> None:
    small.registry.add_image("a", "1", [tar_of(*((f"f{n}", bytes(1_000_000)) for n in range(20)))])
    with pytest.raises((Exhausted, OSError)) as caught:
        small.pull("a:1")
    assert isinstance(caught.value, Exhausted) or caught.value.errno == errno.ENOSPC
    assert small.left() == []
    small.registry.add_image("b", "1", LAYERS)
    small.pull("b:1")


def test_inodes_that_run_out(small: Bench) -> None:
    small.registry.add_image("a", "1", [tar_of(*((f"f{n}", b"") for n in range(1000)))])
    with pytest.raises((Exhausted, OSError)) as caught:
        small.pull("a:1")
    assert isinstance(caught.value, Exhausted) or caught.value.errno == errno.ENOSPC
    assert small.left() == []
    small.registry.add_image("b", "1", LAYERS)
    small.pull("b:1")


def test_a_full_disk_lets_images_go(small: Bench) -> None:
    small.registry.add_image("a", "1", LAYERS)
    identity = small.pull("a:1")
    filler = small.root / "filler"
    with filler.open("wb") as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(1 << 16))
    small.store.remove(identity)
    assert small.store.list() == []
    assert small.left() == []
    assert ImageStore(small.root, small.snapshots).list() == []


def test_a_disk_that_is_read_only(small: Bench) -> None:
    small.registry.add_image("a", "1", LAYERS)
    identity = small.pull("a:1")
    small.registry.add_image("b", "1", LAYERS[:1], {"User": "other"})
    small.snapshots.settle()
    disk = str(small.root.parent)
    syscalls.mount("", disk, "", syscalls.MS_REMOUNT | syscalls.MS_RDONLY, "")
    try:
        for attempt in (lambda: small.pull("b:1"), lambda: small.store.remove(identity)):
            with pytest.raises(OSError, match="Read-only") as caught:
                attempt()
            assert caught.value.errno == errno.EROFS
        assert [image.id for image in small.store.list()] == [identity]
        assert ImageStore(small.root, Snapshots(small.root)).list() == small.store.list()
    finally:
        syscalls.mount("", disk, "", syscalls.MS_REMOUNT, "")
    small.store.remove(identity)
    assert small.left() == []


def test_room_is_kept_in_reserve(small: Bench) -> None:
    room = Room(small.root)
    room.check(7_000_000)
    with pytest.raises(Exhausted, match="kept in reserve"):
        room.check(8_380_000)
