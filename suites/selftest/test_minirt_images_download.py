"""Downloads over a bad line: gone on with, tried again, given up in time."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from minirt_images import HASTY, LAYERS, Bench, bench_on
from minirt_registry import Fault, tar_of

from harness.clock import wait_until
from harness.minirt.errors import Denied, InvalidArgument, TimedOut, Unavailable
from harness.minirt.images.credentials import NOBODY
from harness.minirt.images.patience import Patience, retry_after

NOISE = tar_of(("noise", os.urandom(400_000)))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with bench_on(tmp_path) as bench:
        yield bench


def layer(bench: Bench, name: str = "a", at: int = 0) -> str:
    return str(json.loads(bench.registry.manifests[name, "1"][1])["layers"][at]["digest"])


def test_a_broken_transfer_is_gone_on_with(bench: Bench) -> None:
    bench.registry.add_image("a", "1", [NOISE])
    digest = layer(bench)
    bench.registry.faults[digest] = [Fault(cut=300_000), Fault(cut=10)]
    bench.pull("a:1")
    asked = [headers.get("Range", "") for path, headers in bench.registry.seen if digest in path]
    assert len(asked) == 3
    assert asked[0] == ""
    # Not one byte twice: each time from where the last one ended, give or take what the client had not read.
    starts = [int(row.removeprefix("bytes=").rstrip("-")) for row in asked[1:]]
    assert 0 < starts[0] <= 300_000
    assert starts[0] <= starts[1] <= starts[0] + 10


def test_a_registry_without_ranges_sends_it_all_again(bench: Bench) -> None:
    bench.registry.add_image("a", "1", [NOISE])
    bench.registry.ranges = False
    bench.registry.faults[layer(bench)] = [Fault(cut=300_000)]
    bench.pull("a:1")
    assert len(bench.store.list()) == 1


def test_a_line_that_never_holds_is_given_up(bench: Bench) -> None:
    bench.registry.add_image("a", "1", [NOISE])
    bench.registry.faults[layer(bench)] = [Fault(cut=0) for _ in range(9)]
    with pytest.raises(Unavailable, match=r"broke off after 0 of .* 3 times in a row"):
        bench.pull("a:1")
    assert bench.left() == []


def test_progress_is_not_counted_as_failing(bench: Bench) -> None:
    bench.registry.add_image("a", "1", [NOISE])
    bench.registry.faults[layer(bench)] = [Fault(cut=70_000) for _ in range(5)]
    bench.pull("a:1")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_registry_is_asked_again(bench: Bench, status: int) -> None:
    bench.registry.add_image("a", "1", LAYERS)
    bench.registry.faults["1"] = [Fault(status, {"Retry-After": "1"}), Fault(status)]
    bench.registry.faults[layer(bench)] = [Fault(status)]
    bench.pull("a:1")
    assert bench.registry.requests.count("/v2/a/manifests/1") == 3


def test_a_registry_that_stays_busy_is_given_up(bench: Bench) -> None:
    bench.registry.add_image("a", "1", LAYERS)
    bench.registry.faults["1"] = [Fault(429) for _ in range(9)]
    with pytest.raises(Unavailable, match="too many requests"):
        bench.pull("a:1")
    assert bench.registry.requests.count("/v2/a/manifests/1") == 3


def test_what_will_not_change_is_asked_once(bench: Bench) -> None:
    bench.registry.add_image("a", "1", LAYERS)
    bench.registry.faults["1"] = [Fault(403)]
    with pytest.raises(Denied, match="403"):
        bench.pull("a:1")
    assert bench.registry.requests == ["/v2/a/manifests/1"]


def test_a_stalled_connection_counts_as_broken(tmp_path: Path) -> None:
    over = threading.Event()
    with bench_on(tmp_path, patience=Patience(tries=3, first_s=0, longest_s=0, stall_s=0.2)) as bench:
        bench.registry.add_image("a", "1", [NOISE])
        bench.registry.faults[layer(bench)] = [Fault(cut=1000, stall=over)]
        try:
            bench.pull("a:1")
        finally:
            over.set()
        assert len(bench.store.list()) == 1


def test_a_registry_that_trickles_counts_as_broken(tmp_path: Path) -> None:
    with bench_on(tmp_path, patience=replace(HASTY, trickle_s=0.02)) as bench:
        bench.registry.add_image("a", "1", [tar_of(("noise", os.urandom(50_000)))])
        faults = [Fault(trickle=threading.Event()) for _ in range(3)]
        bench.registry.faults[layer(bench)] = list(faults)
        try:
            with pytest.raises(Unavailable, match="3 times in a row: 0 s brought"):
                bench.pull("a:1")
            bench.registry.faults[layer(bench)] = faults[:1]
            bench.pull("a:1")
        finally:
            for fault in faults:
                assert fault.trickle is not None
                fault.trickle.set()


def test_a_pull_that_trickles_can_be_cancelled(bench: Bench) -> None:
    bench.registry.add_image("a", "1", [NOISE])
    fault = Fault(trickle=threading.Event())
    bench.registry.faults[layer(bench)] = [fault]
    assert fault.trickle is not None
    try:
        with pytest.raises(TimedOut):
            name = f"{bench.registry.address}/a:1"
            bench.puller.pull(name, NOBODY, lambda: f"/v2/a/blobs/{layer(bench)}" in bench.registry.requests)
        wait_until(lambda: bench.left() == [], 10, "the pull to be undone")
    finally:
        fault.trickle.set()


def test_patience() -> None:
    slept: list[float] = []
    patience = Patience(first_s=1.0, longest_s=20.0, sleep=slept.append)
    for failed, asked in ((1, 0.0), (2, 0.0), (3, 0.0), (9, 0.0), (1, 7.0), (1, 900.0)):
        patience.wait(failed, asked)
    assert slept == [1.0, 2.0, 4.0, 20.0, 7.0, 20.0]
    assert [retry_after(text) for text in ("", "5", "-3", "soon", "Wed, 21 Oct 2015 07:28:00 GMT")] == [0, 5, 0, 0, 0]
    assert retry_after("Wed, 21 Oct 2099 07:28:00 GMT") > 0


def test_two_images_with_a_layer_in_common_share_its_download(bench: Bench) -> None:
    bench.registry.add_image("a", "1", [NOISE, LAYERS[0]])
    bench.registry.add_image("b", "1", [NOISE, LAYERS[1]])
    bench.registry.hold = threading.Event()
    pulls = [bench.pull_aside("a:1"), bench.pull_aside("b:1")]
    configs = [json.loads(bench.registry.manifests[name, "1"][1])["config"]["digest"] for name in "ab"]
    wait_until(
        lambda: all(f"/v2/{n}/blobs/{c}" in bench.registry.requests for n, c in zip("ab", configs, strict=True)),
        10,
        "both",
    )
    bench.registry.hold.set()
    for thread, _ in pulls:
        thread.join()
    assert len({found for _, (found,) in pulls if isinstance(found, str)}) == 2
    assert sum(layer(bench) in path for path in bench.registry.requests) == 1
    assert len(bench.store.list()) == 2


def test_one_of_two_who_wait_may_go(bench: Bench) -> None:
    bench.registry.add_image("a", "1", [NOISE])
    bench.registry.hold = threading.Event()
    thread, found = bench.pull_aside("a:1")
    wait_until(lambda: any("/blobs/" in path for path in bench.registry.requests), 10, "the pull")
    with pytest.raises(TimedOut):
        bench.puller.pull(f"{bench.registry.address}/a:1", NOBODY, lambda: True)
    bench.registry.hold.set()
    thread.join()
    assert found == [bench.store.list()[0].id]
    assert bench.registry.requests.count("/v2/a/manifests/1") == 1


def test_one_bad_layer_ends_the_pull_with_its_own_reason(bench: Bench) -> None:
    bench.registry.add_image("a", "1", [NOISE, *LAYERS])
    digest = layer(bench, at=1)
    bench.registry.blobs[digest] = bytes(len(bench.registry.blobs[digest]))
    with pytest.raises(InvalidArgument, match=digest):
        bench.pull("a:1")
    assert bench.left() == []


def test_a_failed_pull_is_told_and_the_next_one_starts_afresh(bench: Bench) -> None:
    bench.registry.add_image("a", "1", LAYERS)
    bench.registry.faults["1"] = [Fault(404)]
    thread, found = bench.pull_aside("a:1")
    thread.join()
    assert isinstance(found[0], Exception)
    identity = bench.pull("a:1")
    said = [message for message, _ in bench.notes]
    assert said == ["pulling", "not pulled", "pulling", "pulled"]
    assert bench.notes[-1][1]["id"] == identity
    assert bench.notes[-1][1]["received_bytes"] > 0


def test_a_mirror_that_fails_is_passed_over(bench: Bench) -> None:
    bench.registry.add_image("a", "1", LAYERS)
    folder = bench.hosts / "registry.example"
    folder.mkdir(parents=True)
    digest = layer(bench)
    (folder / "hosts.toml").write_text(
        f'server = "http://{bench.registry.address}"\n[host."http://127.0.0.1:1"]\n[host."http://{bench.registry.address}/v2/mirror"]\n'
    )
    image = bench.puller.pull("registry.example/a:1", NOBODY, lambda: False)
    assert image.tags == ("registry.example/a:1",)
    # The second mirror was asked for all, by the original name; the first was left alone once it was silent.
    assert any(
        path.startswith(f"/v2/mirror/v2/a/blobs/{digest}?ns=registry.example") for path, _ in bench.registry.seen
    )


def test_a_hash_of_512_bits(bench: Bench) -> None:
    bench.registry.add_image("a", "1", LAYERS)
    raw = bench.registry.manifests["a", "1"][1]
    target = "sha512:" + hashlib.sha512(raw).hexdigest()
    bench.registry.manifests["a", target] = bench.registry.manifests["a", "1"]
    bench.pull(f"a@{target}")
    assert bench.store.list()[0].digests == (f"{bench.registry.address}/a@{target}",)
