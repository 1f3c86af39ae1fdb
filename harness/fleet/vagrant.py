"""Vagrant, run where the machine's hypervisor is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from xml.etree import ElementTree

from harness import paths
from harness.command import Completed
from harness.errors import CommandError, CommandTimeout, MachineError
from harness.fleet.accelerator import Kind
from harness.fleet.box import cache
from harness.fleet.definition import Definition, Recipe, read_definitions
from harness.fleet.lines import NEVER, Recall, Say, follow
from harness.fleet.place import URI, Place, PlaceRunner, find_place

UP_LIMIT_S = 600.0
"""for a machine to answer by ssh; emulated on two cores it takes about a minute"""
TAIL_LINES = 15
MARK = "seatrial-VAGRANTSLASH-"
"""how Vagrant begins the names of its copies of our boxes"""


class Vagrant:
    """The machine `definition` at `place`, run by `kind`."""

    def __init__(self, definition: Definition, place: Place, kind: Kind, limit_s: float = UP_LIMIT_S) -> None:
        self._definition, self._place, self._limit_s = definition, place, limit_s
        self.console = place.folder / "console.log"
        self._runner = PlaceRunner(place, self._environment(kind))

    def up(self, say: Say, recall: Recall = NEVER) -> None:
        """Bring it to life, and wait until it answers by ssh.

        Raises `MachineError` with the end of what it wrote to its console where it does not, and with Vagrant's own words where
        that cannot start it.
        """
        name = self._definition.name

        def tell(line: str) -> None:
            # "==> trixie: Starting domain.", the lines below it, and a line a percent of whatever is copied
            if "Progress: " not in line:
                say(line.removeprefix("==> ").removeprefix(f"{name}:").strip())

        try:
            follow(self._runner, ("vagrant", "up", name), tell, timeout_s=self._limit_s, recall=recall)
        except CommandTimeout:
            raise MachineError(
                f"{name} did not answer by ssh within {self._limit_s:g} s{self.console_tail()}"
            ) from None
        except CommandError as error:
            raise MachineError(f"{name} cannot be brought up: {_reason(error.stderr)}{self.console_tail()}") from None

    def console_tail(self) -> str:
        """The last lines of its serial console, as a paragraph; empty where there are none."""
        try:
            text = self.console.read_text(errors="replace")
        except OSError:
            return ""
        lines = [line.rstrip() for line in text.splitlines() if line.strip()][-TAIL_LINES:]
        return "\n".join(["\nthe end of its console:", *lines]) if lines else "\nits console stayed empty"

    def ssh_config(self) -> str:
        """What ssh has to read to reach the machine. Raises `CommandError`."""
        return self._runner.run(("vagrant", "ssh-config", self._definition.name), timeout_s=120).check().text

    def destroy(self) -> None:
        """End the machine and remove its disk; a private place does that by going away. Raises `CommandError`."""
        if self._place.private:
            return
        self._runner.run(("vagrant", "destroy", "--force", self._definition.name), timeout_s=300).check()
        if self._definition.recipe:
            self._remove_volumes(self._definition.recipe)

    def _remove_volumes(self, recipe: Recipe) -> None:
        """Remove the copies of a box that Vagrant made in libvirt's pool. Raises `CommandError`.

        Not those that other disks build on; and none while another machine of that box may be about to make its disk.
        """
        others = (other.name for other in read_definitions().values() if other.recipe == recipe)
        if any(find_place(name) for name in others if name != self._definition.name):
            return
        listed = self._virsh("vol-list")
        if listed.status:
            # There is no pool, if Vagrant never came to make it.
            return
        # A name and a path in each line. Of names with blanks none is Vagrant's.
        names = [line.split()[0] for line in listed.text.splitlines() if line.strip()]
        described = [self._virsh("vol-dumpxml", name) for name in names]
        volumes = [ElementTree.fromstring(done.text) for done in described if done.status == 0]
        used = {volume.findtext("backingStore/path") for volume in volumes}
        for volume in volumes:
            name = volume.findtext("name", "")
            if name.startswith(f"{MARK}{recipe.name}-") and volume.findtext("target/path") not in used:
                self._virsh("vol-delete", name).check()

    def _virsh(self, verb: str, *words: str) -> Completed:
        return self._runner.run(("virsh", "--quiet", "--connect", URI, verb, "--pool", "default", *words), timeout_s=60)

    def _environment(self, kind: Kind) -> dict[str, str]:
        own = self._definition.recipe is not None
        return {
            **os.environ,
            "VAGRANT_CWD": str(paths.vagrant()),
            "VAGRANT_DOTFILE_PATH": str(self._place.folder / "vagrant"),
            # A public box is the user's; one of ours is in the cache already, and goes nowhere else.
            **({"VAGRANT_HOME": str(cache() / "vagrant.d")} if own else {}),
            "VAGRANT_DEFAULT_PROVIDER": "libvirt",
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            "VAGRANT_NO_COLOR": "1",
            "VAGRANT_NO_PARALLEL": "1",
            "LIBVIRT_DEFAULT_URI": URI,
            "SEATRIAL_CACHE": str(cache()),
            "SEATRIAL_DRIVER": kind.driver,
            "SEATRIAL_CONSOLE": str(self.console),
        }


def forget_boxes(name: str) -> None:
    """Drop the copies that Vagrant made of boxes called `name` in the cache, but for the newest.

    By hand: ``vagrant box remove`` looks for machines that use the box, and makes anew the folders of those that are gone.
    """
    current = Path(os.path.realpath(cache() / "boxes" / f"{name}.box")).stem
    for folder in (cache() / "vagrant.d/boxes").glob(f"{MARK}{name}-*"):
        if folder.name != f"{MARK}{current}" and folder.name.rpartition("-")[0] == f"{MARK}{name}":
            shutil.rmtree(folder)


def _reason(said: str) -> str:
    """What Vagrant wrote after its progress lines: the message that it ends with."""
    lines = [line for line in said.splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("==>", "    "))]
    return "\n".join(told[-12:]) or (lines[-1] if lines else "Vagrant gave no reason")
