"""Pulling: what is asked of a registry, what is checked, what is left when it fails."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from minirt_images import LAYERS, Bench, bench_on
from minirt_registry import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Registry, digest_of

from harness.clock import wait_until
from harness.minirt.errors import Denied, InvalidArgument, NotFound, TimedOut, Unavailable
from harness.minirt.images.credentials import NOBODY, Credentials
from harness.minirt.images.hosts import endpoints_of, is_loopback
from harness.minirt.images.manifest import candidates
from harness.minirt.images.snapshot import Snapshots, chain_ids
from harness.minirt.images.store import ImageStore


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with bench_on(tmp_path) as bench:
        yield bench


def test_a_pull_and_its_record(bench: Bench) -> None:
    digest = bench.registry.add_image("a/b", "1", LAYERS, {"Cmd": ["x"]})
    identity = bench.pull("a/b:1")
    image = bench.store.get(f"{bench.registry.address}/a/b:1")
    assert image.id == identity
    assert image.tags == (f"{bench.registry.address}/a/b:1",)
    assert image.digests == (f"{bench.registry.address}/a/b@{digest}",)
    assert bench.store.config(image)["config"] == {"Cmd": ["x"]}
    top, bottom = bench.snapshots.layers(image.chain)
    assert Path(top, "two").read_bytes() == b"22"
    assert Path(bottom, "one").read_bytes() == b"1"
    manifest = json.loads(bench.registry.manifests["a/b", "1"][1])
    assert image.size_bytes == manifest["config"]["size"] + sum(layer["size"] for layer in manifest["layers"])
    for name in (identity, identity.removeprefix("sha256:"), identity[7:15], image.digests[0]):
        assert bench.store.find(name) == image
    # A second store on the same folder: what a restarted daemon knows.
    again = ImageStore(bench.root, Snapshots(bench.root))
    assert again.list() == [image]


def test_what_is_there_is_not_fetched_again(bench: Bench) -> None:
    bench.registry.add_image("a", "1", LAYERS)
    bench.pull("a:1")
    bench.registry.requests.clear()
    bench.pull("a:1")
    assert bench.registry.requests == ["/v2/a/manifests/1"]


@pytest.mark.parametrize(("media_type", "compress"), [(DOCKER_MANIFEST, True), (OCI_MANIFEST, False)])
def test_media_types_and_plain_layers(bench: Bench, media_type: str, compress: bool) -> None:
    bench.registry.add_image("a", "latest", LAYERS, compress=compress, media_type=media_type)
    bench.pull("a")
    assert len(bench.store.list()) == 1


def test_by_digest_and_through_an_index(bench: Bench) -> None:
    ours = bench.registry.add_image("a", "ours", LAYERS)
    rows = [
        {"digest": digest_of(b"other"), "size": 1, "platform": {"os": "linux", "architecture": "vax"}},
        {"digest": ours, "size": 1, "platform": {"os": "linux", "architecture": "amd64"}},
        {"digest": ours, "size": 1, "platform": {"os": "linux", "architecture": "arm64"}},
    ]
    index = bench.registry.add_manifest("a", "1", json.dumps({"manifests": rows}).encode(), OCI_INDEX)
    bench.pull(f"a@{index}")
    (image,) = bench.store.list()
    assert image.tags == ()
    assert image.digests == (f"{bench.registry.address}/a@{index}",)


def test_choosing_a_platform() -> None:
    good = "sha256:" + "1" * 64
    rows = {"manifests": [{"digest": good, "size": 1, "platform": {"os": "linux", "architecture": "arm64"}}]}
    assert [row.digest for row in candidates(rows, "x", "aarch64")] == [good]
    with pytest.raises(NotFound, match="only for linux/arm64"):
        candidates(rows, "x", "x86_64")
    with pytest.raises(InvalidArgument):
        candidates({"manifests": ["nonsense"]}, "x", "x86_64")


def test_a_tag_that_moved(bench: Bench) -> None:
    bench.registry.add_image("a", "1", LAYERS)
    old = bench.pull("a:1")
    bench.registry.add_image("a", "1", LAYERS[:1])
    new = bench.pull("a:1")
    assert bench.store.get(f"{bench.registry.address}/a:1").id == new
    assert bench.store.get(old).tags == ()


def test_removal_leaves_nothing_and_may_be_repeated(bench: Bench) -> None:
    bench.registry.add_image("a", "1", LAYERS)
    identity = bench.pull("a:1")
    bench.store.remove(f"{bench.registry.address}/a:1")
    bench.store.remove(f"{bench.registry.address}/a:1")
    assert bench.store.find(identity) is None
    assert bench.left() == []


def test_removal_spares_the_layers_of_containers(bench: Bench) -> None:
    bench.registry.add_image("a", "1", LAYERS)
    image = bench.store.get(bench.pull("a:1"))
    bench.store.remove(image.id, lambda: set(image.chain))
    assert len(bench.left()) == 2
    bench.store.collect()
    assert bench.left() == []


def damaged_layer(registry: Registry) -> None:
    digest = json.loads(registry.manifests["a", "1"][1])["layers"][1]["digest"]
    registry.blobs[digest] = registry.blobs[digest][:-1] + bytes([registry.blobs[digest][-1] ^ 1])


def longer_layer(registry: Registry) -> None:
    digest = json.loads(registry.manifests["a", "1"][1])["layers"][1]["digest"]
    registry.blobs[digest] += b"more"


def shorter_layer(registry: Registry) -> None:
    digest = json.loads(registry.manifests["a", "1"][1])["layers"][1]["digest"]
    registry.blobs[digest] = registry.blobs[digest][:-10]


def changed_config(registry: Registry) -> None:
    digest = json.loads(registry.manifests["a", "1"][1])["config"]["digest"]
    registry.blobs[digest] = registry.blobs[digest].replace(b"linux", b"LINUX")


def wrong_diff_id(registry: Registry) -> None:
    manifest = json.loads(registry.manifests["a", "1"][1])
    config = json.loads(registry.blobs[manifest["config"]["digest"]])
    config["rootfs"]["diff_ids"][1] = "sha256:" + "0" * 64
    manifest["config"] |= registry.add_blob(json.dumps(config).encode())
    registry.add_manifest("a", "1", json.dumps(manifest).encode(), OCI_MANIFEST)


def too_few_layers(registry: Registry) -> None:
    manifest = json.loads(registry.manifests["a", "1"][1])
    manifest["layers"].pop()
    registry.add_manifest("a", "1", json.dumps(manifest).encode(), OCI_MANIFEST)


def no_manifest(registry: Registry) -> None:
    registry.add_manifest("a", "1", b"[1, 2]", OCI_MANIFEST)


def odd_descriptor(registry: Registry) -> None:
    manifest = json.loads(registry.manifests["a", "1"][1])
    manifest["layers"][0]["digest"] = "sha256:../../../etc/passwd"
    registry.add_manifest("a", "1", json.dumps(manifest).encode(), OCI_MANIFEST)


@pytest.mark.parametrize(
    "lie",
    [
        damaged_layer,
        longer_layer,
        shorter_layer,
        changed_config,
        wrong_diff_id,
        too_few_layers,
        no_manifest,
        odd_descriptor,
    ],
)
def test_a_registry_that_lies_leaves_nothing(bench: Bench, lie: object) -> None:
    bench.registry.add_image("a", "1", LAYERS)
    lie(bench.registry)  # type: ignore[operator]
    with pytest.raises((InvalidArgument, Unavailable)):
        bench.pull("a:1")
    assert bench.store.list() == []
    bench.store.collect()
    assert bench.left() == []


def test_a_digest_that_is_not_what_came(bench: Bench) -> None:
    digest = bench.registry.add_image("a", "1", LAYERS)
    bench.registry.manifests["a", digest] = (OCI_MANIFEST, b"{}")
    with pytest.raises(InvalidArgument, match="was asked for"):
        bench.pull(f"a@{digest}")


def test_unknown_and_unreachable(bench: Bench) -> None:
    with pytest.raises(NotFound, match="manifest unknown"):
        bench.pull("nothing:1")
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1.*refused"):
        bench.puller.pull("127.0.0.1:1/a:1", NOBODY, lambda: False)


def test_tokens(bench: Bench) -> None:
    bench.registry.add_image("a", "1", LAYERS)
    bench.registry.token = "abc"
    with pytest.raises(Denied):
        bench.pull("a:1")
    with pytest.raises(Denied):
        bench.pull("a:1", Credentials("user", "wrong"))
    bench.pull("a:1", Credentials("user", "secret"))
    bench.store.remove(f"{bench.registry.address}/a:1")
    bench.pull("a:1", Credentials(registry_token="abc"))


def test_credentials() -> None:
    assert base64.b64decode(Credentials("u", "p").basic.removeprefix("Basic ")) == b"u:p"
    assert Credentials().basic == ""


def test_a_mirror_by_the_original_name(bench: Bench) -> None:
    bench.registry.add_image("a", "1", LAYERS)
    folder = bench.hosts / "registry.example"
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(
        f'server = "http://127.0.0.1:1"\n[host."http://{bench.registry.address}"]\ncapabilities = ["pull", "resolve"]\n'
    )
    image = bench.puller.pull("registry.example/a:1", NOBODY, lambda: False)
    assert image.tags == ("registry.example/a:1",)


def test_endpoints(tmp_path: Path) -> None:
    assert [row.base for row in endpoints_of("docker.io", None)] == ["https://registry-1.docker.io/v2"]
    assert [row.base for row in endpoints_of("localhost:5000", tmp_path)] == ["http://localhost:5000/v2"]
    assert [row.base for row in endpoints_of("registry.example", tmp_path)] == ["https://registry.example/v2"]
    folder = tmp_path / "_default"
    folder.mkdir()
    (folder / "hosts.toml").write_text('[host."https://mirror.example/base"]\noverride_path = true\n')
    mirror, direct = endpoints_of("registry.example", tmp_path)
    assert (mirror.base, mirror.namespace) == ("https://mirror.example/base", "registry.example")
    assert direct.base == "https://registry.example/v2"
    (folder / "hosts.toml").write_text("= nonsense")
    with pytest.raises(InvalidArgument, match=r"hosts\.toml"):
        endpoints_of("registry.example", tmp_path)
    assert [is_loopback(host) for host in ("localhost", "127.0.0.9:1", "[::1]:5", "127.0.0.1.example")] == [
        True
    ] * 3 + [False]


def test_two_pulls_of_one_image_share_the_work(bench: Bench) -> None:
    bench.registry.add_image("a", "1", LAYERS)
    bench.registry.hold = threading.Event()
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(bench.pull("a:1"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: any("/blobs/" in path for path in bench.registry.requests), 10, "the pull")
    wait_until(lambda: sum(job.waiting for job in bench.puller._jobs.values()) == 3, 10, "all to wait")
    bench.registry.hold.set()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert bench.registry.requests.count("/v2/a/manifests/1") == 1


def test_a_pull_that_nobody_waits_for_ends_with_nothing(bench: Bench) -> None:
    bench.registry.add_image("a", "1", LAYERS)
    bench.registry.hold = threading.Event()
    name = f"{bench.registry.address}/a:1"
    gone = threading.Event()
    errors: list[BaseException] = []

    def pull() -> None:
        try:
            bench.puller.pull(name, NOBODY, gone.is_set)
        except TimedOut as error:
            errors.append(error)

    thread = threading.Thread(target=pull)
    thread.start()
    wait_until(lambda: any("/blobs/" in path for path in bench.registry.requests), 10, "the pull")
    gone.set()
    thread.join()  # at once, though the registry has stalled
    assert errors
    bench.registry.hold.set()
    wait_until(lambda: bench.left() == [], 10, "the pull to be undone")


def test_a_damaged_index_is_put_aside(bench: Bench) -> None:
    bench.registry.add_image("a", "1", LAYERS)
    bench.pull("a:1")
    (bench.root / "images/index.json").write_text("{")
    store = ImageStore(bench.root, Snapshots(bench.root))
    assert store.list() == []
    assert "put aside" in store.damage
    assert (bench.root / "images/index.json.damaged").exists()


def test_half_a_layer_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "layers/tmp-1/fs").mkdir(parents=True)
    Snapshots(tmp_path)
    assert list((tmp_path / "layers").iterdir()) == []


def test_chain_ids() -> None:
    first, second = chain_ids(["sha256:" + "a" * 64, "sha256:" + "b" * 64])
    assert first == "sha256:" + "a" * 64
    assert second == digest_of(f"{first} sha256:{'b' * 64}".encode())
