"""Networks that tests name by import path."""

from __future__ import annotations

import os
import random
import signal
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class _WithDropout(nn.Module):
    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Dropout(0.2),
        )
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))  # type: ignore[no-any-return]


def with_dropout(num_classes: int, in_channels: int) -> nn.Module:
    """Batch norm and dropout: both have state that a resume must get right."""
    return _WithDropout(num_classes, in_channels)


def linear(num_classes: int, in_channels: int) -> nn.Module:
    """Two layers that a large LR blows up: nothing normalises."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, 64), nn.Linear(64, num_classes))


def _signal_in(step: int) -> None:
    """Send $TEST_SIGNAL, such as SIGTERM@8, to this process in its step of that number, or in every one: SIGUSR2@."""
    name, _, at = os.environ.get("TEST_SIGNAL", "").partition("@")
    if name and at in ("", str(step)) and torch.is_grad_enabled():  # not where the network is only tried
        os.kill(os.getpid(), signal.Signals[name])


class _Fragile(nn.Module):
    """Finite while the weights of its head change little from step to step; a lower LR keeps them so."""

    def __init__(self, num_classes: int, in_channels: int, limit: float):
        super().__init__()
        self.limit = limit
        self.body = nn.Linear(64 * in_channels, 16)
        self.head = nn.Linear(16, num_classes)
        self.register_buffer("before", self.head.weight.detach().clone())
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
            _signal_in(self.steps)
        moved = (self.head.weight.detach() - self.before).abs().max()
        if self.training and moved <= self.limit:
            self.before.copy_(self.head.weight.detach())
        return self.head(self.body(x.flatten(1))) * torch.where(moved > self.limit, torch.inf, 1.0)  # type: ignore[no-any-return]


def fragile(num_classes: int, in_channels: int, limit: float) -> nn.Module:
    """A network whose loss is infinite once a step moves a weight of its head by more than the limit."""
    return _Fragile(num_classes, in_channels, limit)


class _BadGradient(nn.Module):
    def __init__(self, num_classes: int, in_channels: int, at: int):
        super().__init__()
        self.at = at
        self.body = nn.Linear(64 * in_channels, 16)
        self.head = nn.Linear(16, num_classes)
        self.body.weight.register_hook(lambda gradient: gradient * (torch.inf if int(self.calls) == self.at else 1))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            _signal_in(int(self.calls))
        return self.head(self.body(x.flatten(1)))  # type: ignore[no-any-return]


def bad_gradient(num_classes: int, in_channels: int, at: int) -> nn.Module:
    """A network with a finite loss, of which the gradient of one tensor is infinite in the `at`-th training step."""
    return _BadGradient(num_classes, in_channels, at)


class _Auxiliary(nn.Module):
    def __init__(self, num_classes: int, in_channels: int, fails: bool):
        super().__init__()
        self.head, self.fails = nn.Linear(64 * in_channels, num_classes), fails

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.head(x.flatten(1))
        if self.training and self.fails:
            logits = self.head(logits)
        return (logits, logits) if self.training else logits


def auxiliary(num_classes: int, in_channels: int, fails: bool = False) -> nn.Module:
    """A network that answers with two tensors while it trains, as torchvision's googlenet does, or fails there."""
    return _Auxiliary(num_classes, in_channels, fails)


class _LateBranch(nn.Module):
    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.body = nn.Linear(64 * in_channels, 16)
        self.branch = nn.Linear(16, 16)
        self.head = nn.Linear(16, num_classes)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        x = self.body(x.flatten(1))
        return self.head(x + self.branch(x) if self.calls > 3 else x)  # type: ignore[no-any-return]


def late_branch(num_classes: int, in_channels: int) -> nn.Module:
    """A network that leaves out a branch in its first three training steps."""
    return _LateBranch(num_classes, in_channels)


class _Drawing(nn.Module):
    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.order = np.random.permutation(64 * in_channels)
        self.head = nn.Linear(64 * in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x * random.random() + np.random.uniform() + torch.rand(1)
        return self.head(x.flatten(1)[:, self.order])  # type: ignore[no-any-return]


def drawing(num_classes: int, in_channels: int) -> nn.Module:
    """A network that draws from torch's, numpy's and Python's generators where it is made and whenever it is used."""
    return _Drawing(num_classes, in_channels)


class _Centred(nn.Module):
    def __init__(self, num_classes: int, in_channels: int, at: int):
        super().__init__()
        self.at, self.calls = at, 0
        self.head = nn.Linear(64 * in_channels, num_classes)
        self.register_buffer("centre", torch.full((64 * in_channels,), torch.nan), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        self.calls += self.training
        if self.calls == self.at:
            self.centre = x.mean(0)
        return self.head(x - self.centre.nan_to_num())  # type: ignore[no-any-return]


def centred(num_classes: int, in_channels: int, at: int) -> nn.Module:
    """A network with a buffer that no checkpoint holds, and that changes in the `at`-th training step."""
    return _Centred(num_classes, in_channels, at)


class _Masked(nn.Module):
    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.head = nn.Linear(64 * in_channels, num_classes)
        self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))
        self.frozen = nn.Parameter(self.mask.clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.mask.exp() - self.frozen.exp()).flatten(1))  # type: ignore[no-any-return]


def masked(num_classes: int, in_channels: int) -> nn.Module:
    """A network with a mask of infinities among its buffers, as attention has."""
    return _Masked(num_classes, in_channels)


class _ActNorm(nn.Module):
    """Scales by its first batch (Kingma and Dhariwal 2018); a lock is nothing that can be copied."""

    def __init__(self, num_classes: int, in_channels: int, lock: bool):
        super().__init__()
        self.started, self.lock = False, threading.Lock() if lock else None
        self.register_buffer("scale", torch.ones(64 * in_channels))
        self.head = nn.Linear(64 * in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if not self.started:
            self.started = True
            self.scale.copy_(1 / (x.flatten(1).std(0) + 1e-3))
        logits = self.head(x.flatten(1) * self.scale)
        return (logits, 0) if self.training and self.lock is not None else logits  # type: ignore[return-value]


def act_norm(num_classes: int, in_channels: int, lock: bool = False) -> nn.Module:
    """A network that its first batch changes; with a lock, no copy of it can be made, and it cannot be trained."""
    return _ActNorm(num_classes, in_channels, lock)


class _Growing(nn.Module):
    def __init__(self, num_classes: int, in_channels: int, at: int):
        super().__init__()
        self.at, self.calls = at, 0
        self.head = nn.Linear(64 * in_channels, num_classes)
        self.register_buffer("seen", torch.zeros(1, 64 * in_channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        self.calls += self.training
        if self.calls == self.at:
            self.seen = torch.cat([self.seen, x.mean(0, keepdim=True)])
        return self.head(x - self.seen.mean(0))  # type: ignore[no-any-return]


def growing(num_classes: int, in_channels: int, at: int) -> nn.Module:
    """A network with a buffer that becomes longer in the `at`-th training step."""
    return _Growing(num_classes, in_channels, at)


class _Sparse(nn.Module):
    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.head = nn.Linear(64 * in_channels, num_classes)
        self.register_buffer("near", torch.eye(64 * in_channels).to_sparse(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sparse.mm(self.near, x.flatten(1).t()).t())  # type: ignore[no-any-return, no-untyped-call]


def sparse(num_classes: int, in_channels: int) -> nn.Module:
    """A network with a sparse buffer that no checkpoint holds, as those of graphs have."""
    return _Sparse(num_classes, in_channels)


def uncopied(num_classes: int, in_channels: int) -> nn.Module:
    """A network of which no copy can be made."""
    network = linear(num_classes, in_channels)
    network.lock = threading.Lock()  # type: ignore[assignment]
    return network


class Popping(nn.Module):
    """A transform that takes what it needs off the list that it is given."""

    def __init__(self, sizes: list[int]):
        super().__init__()
        self.largest = sizes.pop()

    def forward(self, image: Tensor) -> Tensor:
        return image


class Learned(nn.Module):
    """A transform that is a network."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, image: Tensor) -> Tensor:
        return image * self.factor


class _Late(nn.Module):
    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.head = nn.Linear(64 * in_channels, num_classes)
        self.register_buffer("table", None, persistent=False)
        self.register_buffer("positions", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.table is None:
            self.table = torch.linspace(-1, 1, x.shape[1])
            self.positions = torch.arange(x.shape[1]) / x.shape[1]
            self.register_buffer("more", torch.ones(x.shape[1]), persistent=False)
            self.register_buffer("mask", torch.full((2,), -torch.inf), persistent=False)
            self.layer, self.other = nn.Module(), nn.Module()
            for layer in (self.layer, self.other):
                layer.register_buffer("last", self.more, persistent=False)
        return self.head(x + self.table * self.positions * self.more)  # type: ignore[no-any-return]


def late(num_classes: int, in_channels: int) -> nn.Module:
    """A network that makes tables when it first needs them, as of rotary positions."""
    return _Late(num_classes, in_channels)


class _Range(nn.Module):
    def __init__(self, num_classes: int, in_channels: int, at: int):
        super().__init__()
        self.at = at
        self.head = nn.Linear(64 * in_channels, num_classes)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("least", torch.tensor(torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            self.least = torch.minimum(self.least, x.detach().min())
        bad = self.training and int(self.calls) == self.at
        return self.head((x - self.least.clamp(max=0)).flatten(1)) * (torch.inf if bad else 1)  # type: ignore[no-any-return]


def ranged(num_classes: int, in_channels: int, at: int = 0) -> nn.Module:
    """A network that keeps the least value that it has seen, at first infinite, as torch's observers do."""
    return _Range(num_classes, in_channels, at)


class _Writing(nn.Module):
    def __init__(self, num_classes: int, in_channels: int, inplace: bool):
        super().__init__()
        self.head, self.inplace = nn.Linear(64 * in_channels, num_classes), inplace

    def forward(self, x: Tensor) -> Tensor:
        x = x.mul_(2).sub_(0.3) if self.inplace else x * 2 - 0.3
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


def writing(num_classes: int, in_channels: int, inplace: bool) -> nn.Module:
    """A network that normalises its images, in place or not."""
    return _Writing(num_classes, in_channels, inplace)


class _Teacher(nn.Module):
    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.student, self.teacher = (nn.Linear(64 * in_channels, num_classes) for _ in "12")
        self.teacher.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.teacher.weight.lerp_(self.student.weight.detach(), 0.1)
        return self.student(x.flatten(1)) + self.teacher(x.flatten(1))  # type: ignore[no-any-return]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if "teacher" not in name}

    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict(state, strict=False)


def teacher(num_classes: int, in_channels: int) -> nn.Module:
    """A network with an average of itself, which it does not save."""
    return _Teacher(num_classes, in_channels)


class _Renamed(nn.Sequential):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {f"own.{name}": value.clone() for name, value in super().state_dict(*args, **kwargs).items()}

    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict({name[4:]: value for name, value in state.items()})


def renamed(num_classes: int, in_channels: int) -> nn.Module:
    """A network that saves copies under names of its own, statistics among them."""
    return _Renamed(nn.Flatten(), nn.BatchNorm1d(64 * in_channels), nn.Linear(64 * in_channels, num_classes))


class _Folding(nn.Module):
    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.stem = nn.Linear(64 * in_channels, 16).requires_grad_(False)
        self.head = nn.Linear(16, num_classes)
        self.register_buffer("scale", torch.ones(16), persistent=False)
        self._fold()
        self.register_load_state_dict_post_hook(lambda module, _: module._fold())

    def _fold(self) -> None:
        self.scale.copy_(1 / self.stem.weight.detach().norm(dim=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x.flatten(1)) * self.scale)  # type: ignore[no-any-return]


def folding(num_classes: int, in_channels: int) -> nn.Module:
    """A network that computes a buffer from its weights whenever they are loaded."""
    return _Folding(num_classes, in_channels)


def sparse_gradients(num_classes: int, in_channels: int) -> nn.Module:
    """A network with a table of which only the rows that were used have gradients."""
    return nn.Sequential(nn.Embedding(4, num_classes, sparse=True))


def half(num_classes: int, in_channels: int) -> nn.Module:
    """A network with weights in float16."""
    return linear(num_classes, in_channels).half()


class _Centre(nn.Module):
    def __init__(self, num_classes: int, in_channels: int, fixed: bool = False):
        super().__init__()
        self.fixed = fixed
        self.head = nn.Linear(64 * in_channels, num_classes)
        self.register_buffer("centre", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.training:
            first = x.mean(0) if self.fixed else torch.zeros_like(x[0])
            if self.centre is None or not self.fixed:
                self.centre = first if self.centre is None else self.centre.lerp(x.mean(0), 0.1)
        return self.head(x if self.centre is None else x - self.centre)  # type: ignore[no-any-return]


def moving_centre(num_classes: int, in_channels: int) -> nn.Module:
    """A network with an average of its images, which begins with zero, and which it does not save."""
    return _Centre(num_classes, in_channels)


def first_centre(num_classes: int, in_channels: int) -> nn.Module:
    """A network with the mean of the first images that it sees, which it does not save."""
    return _Centre(num_classes, in_channels, fixed=True)


class _Turned(nn.Module):
    def __init__(self, dtype: torch.dtype | None):
        super().__init__()
        self.register_buffer("table", dtype and torch.empty(0, dtype=dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None or not len(self.table):
            self.table = torch.linspace(0, 1, x.shape[-1])
        return x * self.table


class _Block(nn.Module):
    def __init__(self, turned: nn.Module, mask: Tensor, width: int):
        super().__init__()
        self.turned, self.linear = turned, nn.Linear(width, width)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.linear(self.turned(x))
        return x + changed.where(self.mask == 0, 0)


def sharing(num_classes: int, in_channels: int, empty: bool = False) -> nn.Module:
    """A network whose blocks share a module with a table that is made late, and a mask of infinities that is saved."""
    width = 64 * in_channels
    turned = _Turned(torch.float32 if empty else None)
    mask = torch.zeros(width).index_fill(0, torch.tensor([3]), -torch.inf)
    blocks = [_Block(turned, mask, width) for _ in range(2)]
    return nn.Sequential(nn.Flatten(), *blocks, nn.Linear(width, num_classes))


class _Norm(nn.Module):
    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.head = nn.Linear(64 * in_channels, num_classes)
        self.register_buffer("scale", self.head.weight.detach().norm(), persistent=False)
        self.register_load_state_dict_post_hook(lambda module, _: module._measure())

    def _measure(self) -> None:
        self.scale = self.head.weight.detach().norm()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1)) / self.scale  # type: ignore[no-any-return]


def norm_as_loaded(num_classes: int, in_channels: int) -> nn.Module:
    """A network with the norm of its weights, as they were when they were loaded."""
    return _Norm(num_classes, in_channels)


class _Recurrent(nn.Module):
    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.rows = nn.LSTM(8 * in_channels, 16, batch_first=True)
        self.head = nn.Linear(16, num_classes)

    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict(state, assign=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rows(x.flatten(1, 2))[0][:, -1])  # type: ignore[no-any-return]


def recurrent(num_classes: int, in_channels: int) -> nn.Module:
    """A network that is loaded by assignment, with a layer that keeps its parameters in two places."""
    return _Recurrent(num_classes, in_channels)


class _Folded(nn.Module):
    def __init__(self, num_classes: int, in_channels: int, written: str):
        super().__init__()
        self.head, self.written = nn.Linear(64 * in_channels, num_classes), written
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("twice", None, persistent=False)
        self.register_buffer("norm", torch.ones(()), persistent=False)
        self._compute()

    def _compute(self) -> None:
        self.twice = 2 * self.head.weight.detach()
        if self.written == "norm":
            self.norm.data.copy_(self.twice.norm())
        if self.written == "scale":
            self.scale.data.clamp_(max=1.0)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        found = super().load_state_dict(*args, **kwargs)
        self._compute()
        return found

    def train(self, mode: bool = True) -> Any:
        self.twice = None if mode else 2 * self.head.weight.detach()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.twice is not None and self.training:
            raise RuntimeError("it is folded")
        weight = 2 * self.head.weight if self.twice is None else self.twice
        return nn.functional.linear(x.flatten(1), weight, self.head.bias) * self.scale


def folded(num_classes: int, in_channels: int, written: str = "") -> nn.Module:
    """A network that computes weights to evaluate with, and when it is loaded what `written` says, too."""
    return _Folded(num_classes, in_channels, written)


class Dark(nn.Module):
    """A network that is to see no image of ones."""

    def __init__(self, pixels: int, num_classes: int, least: float) -> None:
        super().__init__()
        self.fc = nn.Linear(pixels, num_classes)
        self.least = least

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x == 1).all()) or x.std() < self.least:
            raise ValueError("no contrast")
        logits: torch.Tensor = self.fc(x.flatten(1))
        return logits


def dark(num_classes: int, in_channels: int, least: float = -1.0) -> nn.Module:
    return Dark(64 * in_channels, num_classes, least)


class Broken(nn.Module):
    """A block whose forward torch.compile compiles in parts, each on its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(x) if float(x.detach().abs().max()) < 1e6 else x
        return logits


def broken(num_classes: int, in_channels: int, blocks: int = 12) -> nn.Module:
    kinds = [type(f"Broken{i}", (Broken,), {}) for i in range(blocks)]  # which share its forward
    parts = [part for kind in kinds for part in (kind(64 * in_channels), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *parts, nn.Linear(64 * in_channels, num_classes))


def scripted(num_classes: int, in_channels: int) -> nn.Module:
    """With a part that torch has compiled in its older way."""
    part: nn.Module = torch.jit.script(nn.Linear(64 * in_channels, num_classes))
    return nn.Sequential(nn.Flatten(), part)


class Filling:
    """A transform that gives each image in the same memory."""

    def __call__(self, image: Tensor) -> Tensor:
        if not hasattr(self, "made"):
            self.made = torch.empty_like(image)
        return self.made.copy_(image)


class Drawing:
    """A transform that draws, from a generator of its own or from torch's."""

    def __init__(self, own: bool = True) -> None:
        self.generator = torch.Generator() if own else None

    def __call__(self, image: Tensor) -> Tensor:
        return image * torch.rand(1, generator=self.generator)


class Keeping(nn.Module):
    """A network that adds what it made at the step before, with its gradients or without."""

    def __init__(self, num_classes: int, in_channels: int, detach: bool = False) -> None:
        super().__init__()
        self.head, self.detach = nn.Linear(64 * in_channels, num_classes), detach
        self.before: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        made: Tensor = self.head(images.flatten(1))
        if not self.training:
            return made
        if self.before is not None and len(self.before) == len(made):
            made = made + 0.1 * self.before
        self.before = made.detach() if self.detach else made
        return made


class Replacing(nn.Module):
    """A network that has another weight from the step `at`, and at each step another frozen one."""

    def __init__(self, num_classes: int, in_channels: int, at: int = 1) -> None:
        super().__init__()
        self.seen = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.head, self.at, self.steps = nn.Linear(64 * in_channels, num_classes), at, 0

    def forward(self, images: Tensor) -> Tensor:
        self.steps += self.training
        self.seen = nn.Parameter(self.seen * 0.9, requires_grad=False)
        if self.training and self.steps == self.at:
            self.head.weight = nn.Parameter(self.head.weight.detach().clone())
        made: Tensor = self.head(images.flatten(1))
        return made
