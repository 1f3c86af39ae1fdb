"""The pause image of a containerd that runs already: where it has none, that of the test images stands in for it.

A machine without a network could not fetch what its configuration names, and no pod would start.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from harness.arena import Arena
from harness.clock import wait_until
from harness.command import Completed, Group
from harness.engine.daemon import environment
from harness.engine.programs import find_program

TEST_IMAGE = "seatrial/pause:1"
MANAGED = "io.cri-containerd.image"
"""The label that the CRI plugin gives an image once it knows of it."""
SETTING = re.compile(r"^\s*sandbox(?:_image)? = ['\"]([^'\"]+)['\"]", re.MULTILINE)
"""As 1.x has it, and 2.x (below ``pinned_images``)."""


def parse_pause_image(config: str) -> str:
    """The pause image by the text of ``containerd config dump``; "" where there is none."""
    found = SETTING.search(config)
    return found[1] if found else ""


def parse_images(table: str) -> dict[str, str]:
    """Digest by name, by the text of ``ctr images list``."""
    rows = [line.split() for line in table.splitlines()[1:]]
    return {row[0]: row[2] for row in rows if len(row) > 2}


@contextlib.contextmanager
def pause_image(arena: Arena, daemon: int, address: Path, registry: str) -> Iterator[tuple[str, ...]]:
    """Give the containerd with process id `daemon` a pause image for as long as the context lasts; what is to be noted.

    `registry` has the stand-in. Nothing is done where the image is there. Raises `CommandError`, `WaitTimeout`.
    """
    tool = find_program("ctr")
    wanted = _configured(arena, daemon)
    if tool is None or not wanted:
        yield ()
        return
    images = [str(tool), "--address", str(address), "--namespace", "k8s.io", "images"]

    def ctr(*words: str) -> Completed:
        return arena.run([*images, *words], timeout_s=60, group=Group.HARNESS, env=environment(arena))

    def listed() -> dict[str, str]:
        return parse_images(ctr("list").check().text)

    before = listed()
    if wanted in before:
        yield ()
        return
    stand_in = f"{registry}/{TEST_IMAGE}"
    pulled = ctr("pull", "--plain-http", stand_in)
    if pulled.status:
        yield (f"it has no pause image {wanted}, and may not get one",)
        return
    try:
        ctr("tag", "--force", stand_in, wanted).check()
        wait_until(
            lambda: MANAGED in ctr("list", f"name=={wanted}").text, 30, f"containerd's CRI plugin to know {wanted}"
        )
        yield (f"it has no pause image {wanted}: that of the test images stood in for it",)
    finally:
        # Besides these two names there is that by its id, which the CRI plugin gave it.
        now = listed()
        ctr("remove", *(name for name, digest in now.items() if digest == now.get(stand_in) and name not in before))


def _configured(arena: Arena, daemon: int) -> str:
    """What the daemon's own configuration says; "" where it cannot be asked."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{daemon}/cmdline").read_text().split("\0")
        program = str(Path(f"/proc/{daemon}/exe").readlink())
        dump = [program, *_config_option(words), "config", "dump"]
        done = arena.run(dump, timeout_s=30, group=Group.HARNESS, env=environment(arena))
        return "" if done.status else parse_pause_image(done.text)
    return ""


def _config_option(words: list[str]) -> list[str]:
    for index, word in enumerate(words[:-1]):
        if word in ("-c", "--config", "-config"):
            return ["--config", words[index + 1]]
        if word.startswith(("--config=", "-config=", "-c=")):
            return ["--config", word.partition("=")[2]]
    return []
