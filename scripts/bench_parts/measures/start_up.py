"""Commands that should answer at once, each run as a person would run it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

CONFIG = """\
{length}
batch_size: 64
model: small_cnn
dataset: digits
optimizer: {{name: SGD, lr: 0.1, momentum: 0.9}}
schedule:
  - {{name: LinearLR, for: 5%, start_factor: 0.01}}
  - {{name: CosineAnnealingLR, for: rest{mistake}}}
"""
PREVIEW_STEPS = 450_000  # ImageNet's 90 epochs at batch 256


@dataclass(frozen=True)
class Command:
    """A command, and the exit code it must end with."""

    words: tuple[str, ...]
    code: int


def commands(folder: Path) -> dict[str, Command]:
    """What is started, by its name in the table; the configs are written into the folder."""
    (folder / "mistake.yaml").write_text(CONFIG.format(length="epochs: 30", mistake=", Tmax: 3ep"))
    (folder / "long.yaml").write_text(CONFIG.format(length=f"steps: {PREVIEW_STEPS}", mistake=""))
    lrtrain = (sys.executable, "-m", "lrtrain")
    return {
        "python -c pass": Command((sys.executable, "-c", "pass"), 0),
        "python -c 'import torch'": Command((sys.executable, "-c", "import torch"), 0),
        "lrtrain --help": Command((*lrtrain, "--help"), 0),
        "lrtrain fit, a config error": Command((*lrtrain, "fit", "mistake.yaml"), 2),
        f"lrtrain preview, {PREVIEW_STEPS:,} steps": Command((*lrtrain, "preview", "long.yaml"), 0),
    }
