"""What one pytest session of a run has to do, handed over as a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from harness.model.capability import Capability
from harness.model.record import Phase
from harness.model.subject import Subject

ORDERS = "SEATRIAL_ORDERS"
"""Environment variable with the path of the run's orders; xdist's workers inherit it."""


@dataclass(frozen=True, slots=True)
class Orders:
    """Written by `harness.cli`, read by `harness.plugin` in each process of the session."""

    run: str
    folder: Path
    blobs: Path
    phase: Phase
    subjects: tuple[Subject, ...]
    blocks: int = 1
    seed: int = 0
    port: int | None = None

    def write(self, path: Path) -> None:
        """Save as JSON."""
        path.write_text(
            json.dumps(
                {
                    "run": self.run,
                    "folder": str(self.folder),
                    "blobs": str(self.blobs),
                    "phase": self.phase,
                    "blocks": self.blocks,
                    "seed": self.seed,
                    "port": self.port,
                    "subjects": [
                        {
                            "name": subject.name,
                            "engine": subject.engine,
                            "client": subject.client,
                            "handler": subject.handler,
                            "capabilities": sorted(subject.capabilities),
                            "socket": subject.socket,
                            "options": dict(subject.options),
                        }
                        for subject in self.subjects
                    ],
                }
            )
        )

    @classmethod
    def read(cls, path: Path) -> Orders:
        """Load what `write` saved."""
        data = json.loads(path.read_text())
        subjects = tuple(
            Subject(**{**row, "capabilities": frozenset(Capability(word) for word in row["capabilities"])})
            for row in data.pop("subjects")
        )
        folder, blobs, phase = Path(data.pop("folder")), Path(data.pop("blobs")), Phase(data.pop("phase"))
        return cls(folder=folder, blobs=blobs, phase=phase, subjects=subjects, **data)
