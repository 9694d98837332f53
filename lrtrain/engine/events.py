"""What happens during training. `step` is the number of optimizer steps taken so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stepped:
    """One optimizer step was taken, on `images` images."""

    step: int
    images: int


@dataclass(frozen=True, slots=True)
class Logged:
    """Every log_every steps: the LR of each group in this step, and the mean loss since the last such event."""

    step: int
    epoch: float
    lr: dict[str, float]
    loss: float


@dataclass(frozen=True, slots=True)
class Evaluating:
    """An evaluation has seen `done` of `total` images."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Metrics:
    """Means over all images of a split: cross-entropy, and the share with the right class in the first 1 and 5."""

    images: int
    loss: float
    acc1: float
    acc5: float


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation ended. `train_loss` is the mean since the evaluation before; `best` says it is the best so far."""

    step: int
    epoch: float
    split: str
    metrics: Metrics
    train_loss: float
    best: bool


@dataclass(frozen=True, slots=True)
class Reduced:
    """ReduceLROnPlateau lowered the LR."""

    step: int
    epoch: float
    monitor: str
    lr: dict[str, float]


@dataclass(frozen=True, slots=True)
class EpochEnded:
    """A pass over the training data ended; `train_loss` is its mean."""

    step: int
    epoch: int
    lr: dict[str, float]
    train_loss: float


@dataclass(frozen=True, slots=True)
class SaveDue:
    """The state is consistent now and should be saved.

    Attributes:
        step: steps done.
        best: the evaluation after it was the best so far.
        planned: the config says so, and not a signal or a fault: an uninterrupted run saves here too.
    """

    step: int
    best: bool
    planned: bool = True


@dataclass(frozen=True, slots=True)
class Stopped:
    """Training ended before its last step.

    Attributes:
        step: steps done.
        reason: a signal's name, or `early_stop`.
        saved: False where its weights are not finite: the run goes on from the checkpoint before, to where an
            uninterrupted one finds that.
    """

    step: int
    reason: str
    saved: bool = True


@dataclass(frozen=True, slots=True)
class Finished:
    """All steps are done."""

    step: int


Event = Stepped | Logged | Evaluating | Evaluated | Reduced | EpochEnded | SaveDue | Stopped | Finished
