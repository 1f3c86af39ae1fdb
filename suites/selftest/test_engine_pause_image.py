"""harness.engine.pause_image: a containerd that runs already and cannot fetch its pause image."""

from __future__ import annotations

from pathlib import Path

import pytest
from arena_traces import fresh_run, traces

from harness.arena import Arena
from harness.command import Group
from harness.engine import start_engine
from harness.engine.pause_image import parse_pause_image
from harness.image.build import write_images
from harness.image.registry import serve
from harness.model.subject import parse_subject


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ('    sandbox_image = "registry.k8s.io/pause:3.8"\n    sandbox = "x"\n', "registry.k8s.io/pause:3.8"),
        ("[plugins.'x'.pinned_images]\n      sandbox = 'registry.k8s.io/pause:3.10'\n", "registry.k8s.io/pause:3.10"),
        ("    sandboxer = 'podsandbox'\n", ""),
        ("", ""),
    ],
)
def test_the_image_of_a_configuration(text: str, image: str) -> None:
    assert parse_pause_image(text) == image


def test_a_stand_in_goes_with_the_engine(tmp_path: Path) -> None:
    write_images(tmp_path / "blobs")
    own, run = fresh_run(), fresh_run()
    with (
        Arena.open(own, "engine") as arena,
        # Nothing listens there: what it is configured to have is not to be had.
        start_engine(parse_subject("containerd:grpc:runc"), arena, "127.0.0.1:1") as private,
    ):

        def images() -> list[str]:
            ctr = ["ctr", "--address", str(private.socket), "--namespace", "k8s.io", "images", "list", "--quiet"]
            return arena.run(ctr, timeout_s=10, group=Group.HARNESS).check().text.split()

        subject = parse_subject(f"theirs=containerd:grpc:runc@{private.socket}")
        with (
            Arena.open(run, "theirs", attach=True) as here,
            serve(here, tmp_path / "blobs", 0) as registry,
            start_engine(subject, here, registry) as engine,
        ):
            assert "127.0.0.1:1/seatrial/pause:1" in images()
            assert any("stood in for it" in note for note in engine.notes)
            with (
                Arena.open(run, "more", attach=True) as more,
                start_engine(subject, more, registry) as again,
            ):
                assert not any("stood in" in note for note in again.notes)
            assert "127.0.0.1:1/seatrial/pause:1" in images(), "who did not bring it does not take it away"
        assert images() == []
    assert traces(run) == traces(own) == []
