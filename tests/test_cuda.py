"""What differs on a GPU: nothing waits, nothing is compiled twice, and the bits of a run are still its own.

Skipped where there is none.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lrtrain.data.batches import Batches
from lrtrain.engine.events import Logged
from lrtrain.engine.finite import NotFinite
from lrtrain.engine.train import train
from tests.conftest import Ended
from tests.test_engine import job, run, weights

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    # torch warns that this mode is a prototype, and in its compiler of what it does itself.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
    pytest.mark.filterwarnings("ignore:`torch.jit"),
]
GPU: dict[str, Any] = {"device": "cuda", "precision": "bf16", "deterministic": False}
AUGMENTED = {
    "name": "digits",
    "transforms": {
        "train": [
            {"name": "RandomCrop", "size": 8, "padding": 1},
            "RandomHorizontalFlip",
            "RandomVerticalFlip",
            {"name": "ColorJitter", "brightness": 0.5},
            {"name": "RandomErasing", "p": 0.5},
        ]
    },
}


@pytest.fixture(autouse=True)
def any_algorithm() -> Iterator[None]:
    """Afterwards torch may take whatever algorithm it likes."""
    yield
    torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def nothing_waits() -> Iterator[None]:
    """Inside, whatever makes the host wait for the GPU raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dataset": AUGMENTED},
        {"optimizer": {"name": "AdamW", "lr": 0.01}, "schedule": {"name": "OneCycleLR"}},
        {"ema": 0.9, "clip_norm": 1.0, "accumulate": 2, "label_smoothing": 0.1},
        {"mixup": 0.4, "cutmix": 1.0},
        {"model": {"name": "tests.nets:with_dropout"}},
        {"model": {"name": "resnet18", "stem": "small"}, "optimizer": {"name": "SGD", "lr": 0.1, "layer_decay": 0.8}},
    ],
    ids=lambda changes: ",".join(changes) or "plain",
)
def test_no_step_waits_for_the_gpu(changes: dict[str, Any]) -> None:
    made = job(**GPU, steps=30, log_every="100%", eval_every="100%", **changes)
    steps = train(made.state, made.plan, made.batches, made.recipe)
    while made.state.step < 6:  # by then the pass is a graph, where it will be one
        next(steps)
    with nothing_waits():
        while made.state.step < 14:
            next(steps)


def test_what_waits_would_be_seen() -> None:
    with nothing_waits(), pytest.raises(RuntimeError, match="synchronizing"):
        torch.ones(1, device="cuda").item()


def test_batches_have_the_bits_that_the_cpu_gives_them() -> None:
    made = job(device="cuda", dataset=AUGMENTED)
    there, here = made.batches, Batches(made.pipeline, batch_size=96, where=lambda *at: "test")
    for one, other in zip(there.train(0, 40), here.train(0, 40), strict=True):
        assert one.index.tolist() == other.index.tolist()
        assert torch.equal(one.labels.cpu(), other.labels)
        assert torch.allclose(one.images.cpu(), other.images, atol=1e-6)


def test_deterministic_runs_give_the_same_bits_as_a_graph_or_not() -> None:
    net = {"name": "tests.nets:with_dropout"}
    changes = {**GPU, "deterministic": True, "dataset": AUGMENTED, "model": net, "ema": 0.9, "mixup": 0.2, "steps": 40}
    one, other = job(cuda_graph=True, **changes), job(cuda_graph=False, **changes)
    assert one.state.graphs is not None
    assert other.state.graphs is None
    losses = [[event.loss for event in run(made) if isinstance(event, Logged)] for made in (one, other)]
    assert losses[0] == losses[1]
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


def test_a_group_that_thaws_is_trained_from_then_on() -> None:
    frozen = {"name": "SGD", "lr": 0.05, "groups": [{"params": "^fc", "frozen_until": "8step"}]}
    changes = {**GPU, "deterministic": True, "steps": 16, "optimizer": frozen}
    made, plain = job(cuda_graph=True, **changes), job(cuda_graph=False, **changes)
    first = made.state.model.fc.weight.detach().clone()  # type: ignore[operator, union-attr]
    steps = train(made.state, made.plan, made.batches, made.recipe)
    while made.state.step < 8:
        next(steps)
    assert torch.equal(made.state.model.fc.weight, first)  # type: ignore[arg-type]
    list(steps)
    assert not torch.equal(made.state.model.fc.weight, first)  # type: ignore[arg-type]
    run(plain)
    assert all(torch.equal(tensor, weights(plain)[name]) for name, tensor in weights(made).items())


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "RMSprop"])
def test_a_loss_that_is_not_finite_changes_no_weight(optimizer: str) -> None:
    made = job(**GPU, log_every="100%", optimizer={"name": optimizer, "lr": 0.01})
    steps = train(made.state, made.plan, made.batches, made.recipe)
    while made.state.step < 2:  # not a graph yet
        next(steps)
    before = weights(made)
    handle = made.state.model.register_forward_hook(lambda module, args, logits: logits * float("nan"))
    with pytest.raises(NotFinite, match="step 3"):
        list(steps)
    handle.remove()
    torch.cuda.synchronize()
    learned = [name for name, _ in made.state.model.named_parameters()]
    assert all(torch.equal(before[name], weights(made)[name]) for name in learned)


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_a_changing_lr_compiles_nothing_again(cuda_graph: bool) -> None:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        made = job(**GPU, compile=True, cuda_graph=cuda_graph, schedule={"name": "OneCycleLR"}, steps=12)
        losses = [event.loss for event in run(made) if isinstance(event, Logged)]
    plain = [e.loss for e in run(job(**GPU, schedule={"name": "OneCycleLR"}, steps=12)) if isinstance(e, Logged)]
    assert losses == pytest.approx(plain, rel=0.02)


def test_a_run_on_a_gpu_goes_on_in_its_own_bits(lrtrain: Any, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "epochs: 4\nbatch_size: 64\nmodel: {name: small_cnn, width: 16}\ndataset: digits\ndevice: cuda\n"
        "deterministic: true\noptimizer: {name: SGD, lr: 0.1, momentum: 0.9}\nschedule: {name: OneCycleLR}\n"
        "ema: 0.9\nmixup: 0.2\ncheckpoint: {every: 10step, keep: 20}\n"
    )
    whole: Ended = lrtrain("fit", "c.yaml", "--out", "whole")
    assert whole.code == 0, whole.out + whole.err
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    steps = sorted((tmp_path / "cut" / "checkpoints").glob("step-*"))
    for later in steps[3:]:
        shutil.rmtree(later)
    resumed: Ended = lrtrain("fit", "c.yaml", "--out", "cut", "--resume")
    assert resumed.code == 0, resumed.out + resumed.err
    for file in ("metrics.jsonl", *(f"checkpoints/{steps[-1].name}/{part}.safetensors" for part in ("model", "ema"))):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    for command in (("evaluate", "whole"), ("verify", "whole"), ("range-test", "c.yaml", "--out", "sweep")):
        ended: Ended = lrtrain(*command)
        assert ended.code == 0, ended.err
