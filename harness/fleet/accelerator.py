"""How virtual machines are run here: by KVM, or by emulation. Found out by booting, for a ``/dev/kvm`` proves nothing."""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from harness.command import HostRunner
from harness.errors import CommandTimeout, MachineError
from harness.fleet.box import Box, cache

KVM = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
LIMIT_S = 30.0
"""for a kernel to reach its first program; under KVM it takes 1 to 3 s"""
MARK = "it boots: 42"


class Kind(StrEnum):
    KVM = "kvm"
    TCG = "tcg"
    """QEMU's emulation: what happens is right, wall times mean something only against each other"""

    @property
    def driver(self) -> str:
        """What libvirt calls it."""
        return "kvm" if self is Kind.KVM else "qemu"


@dataclass(frozen=True, slots=True)
class Accelerator:
    """What was found."""

    kind: Kind
    why: str
    """why not KVM; empty where it is"""

    @property
    def notice(self) -> str:
        """What a user has to know; empty where there is nothing."""
        if self.kind is Kind.KVM:
            return ""
        return f"machines are emulated (TCG), for {self.why}: everything takes several times as long, wall times are only ratios"


def find_accelerator(box: Box | None, kvm: Path = KVM) -> Accelerator:
    """Boot the kernel of `box` under KVM, to its first program. Asked once until this machine starts again.

    None stands for a box whose kernel is somewhere on its disk: what was found out with another one counts, else KVM is
    taken for good.

    Raises `MachineError` where QEMU is not installed.
    """
    program = find_qemu()
    if not kvm.exists():
        return Accelerator(Kind.TCG, f"there is no {kvm}")
    key = f"{BOOT_ID.read_text().strip()} {program}"
    memory = cache() / "accelerator.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        known = json.loads(memory.read_bytes())
        if known["key"] == key and (box is None or known["box"] == box.path.stem):
            return Accelerator(Kind(known["kind"]), known["why"])
    if box is None:
        return Accelerator(Kind.KVM, "")
    why = probe(program, box)
    found = Accelerator(Kind.TCG if why else Kind.KVM, why)
    with contextlib.suppress(OSError):
        memory.write_text(json.dumps({"key": key, "box": box.path.stem, **asdict(found)}))
    return found


def find_qemu() -> str:
    """QEMU for this architecture. Raises `MachineError`."""
    program = f"qemu-system-{platform.machine()}"
    found = shutil.which(program)
    if found is None:
        raise MachineError(f"there is no {program}: virtual machines cannot be run", "seatrial setup vm")
    return found


def probe(program: str, box: Box, accelerator: str = "kvm", limit_s: float = LIMIT_S) -> str:
    """Why a kernel does not come up under `accelerator`, in words; empty where it does."""
    # The kernel prints its command line too: the mark is what the shell makes of it. Its end panics the kernel, which ends QEMU.
    words = 'console=ttyS0 panic=-1 rdinit=/bin/sh -- -c "echo it boots: $((6*7))"'
    argv = (
        *(program, "-accel", accelerator, "-cpu", "max", "-m", "512", "-nographic", "-no-reboot", "-nodefaults"),
        *("-serial", "stdio", "-monitor", "none", "-kernel", str(box.kernel), "-initrd", str(box.initrd)),
        *("-append", words),
    )
    try:
        done = HostRunner().run(argv, timeout_s=limit_s)
    except CommandTimeout:
        return f"a guest kernel did not come up under {accelerator.upper()} within {limit_s:g} s"
    if MARK in done.text:
        return ""
    lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    return f"a guest kernel fails under {accelerator.upper()} ({lines[0] if lines else 'it ends at once'})"
