"""What a contestant is asked to do, and the clock that it does it by. The same for all."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """One thing to measure in a process of its own.

    Attributes:
        part: module of bench_parts, such as contestants.bare.
        root: folder with train/CLASS and test/CLASS; the number of training images is a multiple of the batch.
        work: folder that the process may write to.
        model: resnet18 (torchvision's, 1,000 classes replaced by the data's) or small_cnn (lrtrain's).
        size: side of the images that the model sees, in px.
        augment: crop (RandomCrop with 4 px padding), resized_crop (RandomResizedCrop) or resized_crop_of_256 (the
            same of images resized before); a flip follows.
        steps: optimizer steps in all; an epoch has `per_epoch`.
        variant: what the part does differently, where it has several ways.
    """

    part: str
    root: str
    work: str
    model: str
    size: int
    augment: str
    batch: int
    classes: int
    steps: int
    per_epoch: int
    workers: int
    threads: int
    variant: dict[str, Any] = field(default_factory=dict)
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    device: str = "cpu"

    @property
    def train_folder(self) -> str:
        """Where the training images are."""
        return str(Path(self.root) / "train")

    def dump(self) -> str:
        """As JSON, which `read_task` reads."""
        return json.dumps(dataclasses.asdict(self))


def read_task(path: str) -> Task:
    """A task that was written with `dump`."""
    return Task(**json.loads(Path(path).read_text()))


class Clock:
    """Notes when the first batch was asked for and when each optimizer step ended.

    Losses are kept as they come and looked at afterwards, so that a step waits for nothing. On a GPU a step ends when
    its kernels do, which events on the GPU tell.
    """

    def __init__(self, steps: int, device: str = "cpu"):
        self._wanted, self._on_gpu = steps, device == "cuda"
        self.began = 0.0
        self.stamps: list[float] = []
        self._events: list[Any] = []
        self.images: list[int] = []
        self.losses: list[Any] = []

    def begin(self) -> None:
        """The first batch is asked for now."""
        self.began = time.perf_counter()
        if self._on_gpu:
            self._mark()

    def step(self, images: int, loss: Any = None) -> None:
        """A step on so many images has ended."""
        self._mark()
        self.images.append(images)
        if loss is not None:
            self.losses.append(loss.detach())

    @property
    def done(self) -> bool:
        """Whether all steps were made."""
        return len(self.images) >= self._wanted

    def _mark(self) -> None:
        if not self._on_gpu:
            self.stamps.append(time.perf_counter())
            return
        import torch

        self._events.append(torch.cuda.Event(enable_timing=True))
        self._events[-1].record()

    def _seconds(self) -> list[float]:
        if not self._on_gpu:
            return [stamp - self.began for stamp in self.stamps]
        self._events[-1].synchronize()
        return [self._events[0].elapsed_time(event) / 1000 for event in self._events[1:]]

    def report(self) -> dict[str, Any]:
        """Times in seconds since `began`, images of each step, and the mean loss of the first and last tenth."""
        losses = [float(loss) for loss in self.losses]
        tenth = max(len(losses) // 10, 1)
        return {
            "seconds": self._seconds(),
            "images": self.images,
            "loss": [sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth] if len(losses) > 1 else None,
        }
