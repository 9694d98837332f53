"""Networks of one's own while they train: what a save or an average must notice, and what it must leave alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lrtrain.engine import average
from lrtrain.engine.events import Evaluated, Finished, Stepped
from lrtrain.engine.state import snapshot
from lrtrain.engine.train import train
from lrtrain.errors import ConfigError
from tests import nets
from tests.test_engine import job, run


@pytest.mark.parametrize(
    ("fails", "message"),
    [(False, "it gave tuple for two while it trains"), (True, "while it trains: mat1 and mat2")],
)
def test_a_network_of_ones_own_that_fails_while_it_trains_is_refused_before(fails: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        job(model={"name": "tests.nets:auxiliary", "fails": fails})
    assert caught.value.problems[0].where is not None
    assert "model" in caught.value.problems[0].where


@pytest.mark.parametrize(
    ("net", "found", "hint"),
    [
        ("centred", "its buffer 'centre' while it trains", "leave `persistent=False` out"),
        (
            "growing",
            "its 'seen' while it trains, from float32 1x64 to float32 2x64",
            "in the type and shape that it ends",
        ),
    ],
)
def test_a_buffer_that_would_come_back_other_than_it_was_is_refused(net: str, found: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=found) as caught:
        job(model={"name": f"tests.nets:{net}", "at": 1})
    assert "model" in str(caught.value.problems[0].where)
    made = job(model={"name": f"tests.nets:{net}", "at": 5})
    for event in train(made.state, made.plan, made.batches, made.recipe):
        if isinstance(event, Stepped) and event.step < 5:
            snapshot(made.state)
    with pytest.raises(ConfigError, match=hint):
        snapshot(made.state)


@pytest.mark.parametrize(
    ("net", "changes", "words"),
    [
        ("teacher", {}, "its parameter 'teacher.weight' while it trains, and as state_dict"),
        ("sparse_gradients", {}, "has sparse gradients in 0"),
        ("half", {"precision": "fp16"}, "those of group 'default' are float16"),
        ("Replacing", {}, "replaces its parameter 'head.weight' while it trains"),
        ("first_centre", {}, "changes its buffer 'centre' while it trains, and with `persistent=False`"),
    ],
)
def test_a_network_that_cannot_be_trained_or_resumed_is_refused_before(net: str, changes: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        job(model={"name": f"tests.nets:{net}"}, **changes)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        ("moving_centre", "its buffer 'centre' while it trains, and with `persistent=False`"),
        ("norm_as_loaded", "computes its buffer 'scale' when it is loaded, and has another one"),
    ],
)
def test_a_buffer_that_a_resumed_run_would_have_otherwise_is_refused_by_the_second_save(net: str, words: str) -> None:
    made = job(model={"name": f"tests.nets:{net}"})
    events = (event for event in train(made.state, made.plan, made.batches, made.recipe) if isinstance(event, Stepped))
    with pytest.raises(ConfigError, match=words):
        [next(events) and snapshot(made.state) for _ in range(2)]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("norm", "computes its buffer 'norm' when it is loaded, and has another one"),
        ("scale", "the model changes its 'scale' as it is loaded"),
    ],
)
def test_a_save_notices_what_loading_would_change(written: str, words: str) -> None:
    made = job(model={"name": "tests.nets:folded", "written": written})
    snapshot(made.state)
    made.state.model.train()
    with torch.no_grad():
        for parameter in made.state.model.parameters():
            parameter.add_(1)
    with pytest.raises(ConfigError, match=words):
        snapshot(made.state)


def test_a_save_takes_away_what_a_network_computes_when_it_is_loaded() -> None:
    made = job(model={"name": "tests.nets:folded"}, steps=9, eval_every="4step")
    for event in train(made.state, made.plan, made.batches, made.recipe):
        if isinstance(event, Stepped):
            snapshot(made.state)
    assert isinstance(event, Finished)


def test_a_network_that_saves_statistics_under_names_of_its_own_trains() -> None:
    made = job(model={"name": "tests.nets:renamed"}, steps=3)
    assert isinstance(run(made)[-1], Finished)
    assert "own.1.running_var" in snapshot(made.state)[0]["model"]


def test_a_network_that_writes_into_its_images_is_evaluated_with_their_mirror_images() -> None:
    found = [
        [event.metrics for event in run(job(model={"name": "tests.nets:writing", "inplace": inplace}, tta="flip"))
         if isinstance(event, Evaluated)]
        for inplace in (False, True)
    ]  # fmt: skip
    assert found[0]
    assert found[0] == found[1]


def test_a_buffer_that_grows_has_no_average() -> None:
    with pytest.raises(ConfigError, match="in the type and shape that it ends"):
        run(job(model={"name": "tests.nets:growing", "at": 5}, ema=0.9))


def test_tables_that_a_network_makes_when_it_needs_them_are_no_obstacle_to_its_average() -> None:
    made = job(model={"name": "tests.nets:late"}, ema=0.9, steps=3)
    assert isinstance(run(made)[-1], Finished)
    saved = snapshot(made.state)[0]
    assert saved["ema"].keys() == saved["model"].keys() == {"head.weight", "head.bias"}
    assert made.state.ema is not None
    seen = next(iter(made.batches.evaluate())).images
    assert made.state.ema.module(seen).isfinite().all()


def test_a_buffer_of_two_names_of_which_one_is_not_saved_is_averaged() -> None:
    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(2)
            self.register_buffer("mean", self.bn.running_mean, persistent=False)

    model = Aliased()
    ours, torchs = (AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True) for _ in range(2))
    for _ in range(3):
        model.bn(torch.randn(8, 2) + 3)
        average.update(ours, model)
        torchs.update_parameters(model)
    assert ours.module.bn.running_mean.abs().min() > 0.1
    for name in ("running_mean", "running_var"):
        assert torch.equal(getattr(ours.module.bn, name), getattr(torchs.module.bn, name))


@pytest.mark.parametrize("empty", [False, True])
def test_what_blocks_share_trains_and_is_averaged_and_saved_by_all_its_names(empty: bool) -> None:
    made = job(model={"name": "tests.nets:sharing", "empty": empty}, ema=0.9, steps=3)
    assert isinstance(run(made)[-1], Finished)
    saved = snapshot(made.state)[0]
    assert saved["ema"].keys() == saved["model"].keys()
    assert {"1.mask", "2.mask"} <= saved["ema"].keys()
    assert torch.equal(saved["ema"]["2.mask"], saved["model"]["1.mask"])


def test_a_sparse_buffer_that_no_checkpoint_holds_trains_and_is_in_the_average() -> None:
    made = job(model={"name": "tests.nets:sparse"}, ema=0.9, steps=3)
    assert isinstance(run(made)[-1], Finished)
    assert snapshot(made.state)[0]["ema"].keys() == {"head.weight", "head.bias"}


def test_a_network_that_takes_no_images_of_ones_trains() -> None:
    assert isinstance(run(job(model={"name": "tests.nets:dark"}, steps=1))[-1], Finished)


def test_a_network_that_takes_no_images_without_contrast_is_told_what_it_was_tried_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nets.dark, "__defaults__", (0.1,))
    with pytest.raises(ConfigError, match="fails when it is given images: no contrast") as caught:
        job(model={"name": "tests.nets:dark"})
    assert "two images that are 0 everywhere" in str(caught.value.problems[0].hint)


def test_a_network_that_keeps_gradients_for_the_next_step_is_told_so() -> None:
    run(job(model={"name": "tests.nets:Keeping", "detach": True}, steps=3))
    with pytest.raises(ConfigError, match="keeps what it made at an earlier step"):
        run(job(model={"name": "tests.nets:Keeping"}, steps=3))


def test_a_save_notices_a_parameter_that_was_replaced() -> None:
    made = job(model={"name": "tests.nets:Replacing", "at": 4})
    events = (event for event in train(made.state, made.plan, made.batches, made.recipe) if isinstance(event, Stepped))
    next(events)
    snapshot(made.state)
    for _ in range(4):
        next(events)
    with pytest.raises(ConfigError, match=r"replaces its parameter 'head\.weight' while"):
        snapshot(made.state)


class Sorting(torch.optim.SGD):
    """Muon's own code sorts them by size."""

    def __init__(self, params: Any, lr: float):
        params = list(params)
        for group in params:
            group["params"] = sorted(group["params"], key=lambda parameter: -parameter.numel())
        super().__init__(params, lr, momentum=0.9)


def test_what_an_optimizer_keeps_has_its_parameters_names_in_whichever_order_it_has_them() -> None:
    made = job(optimizer={"name": f"{__name__}:Sorting", "lr": 0.1})
    run(made)
    parameters = dict(made.state.model.named_parameters())
    parts, _ = snapshot(made.state)
    for name, kept in parts["optimizer"].items():
        assert kept is made.state.optimizer.state[parameters[name.rpartition("/")[0]]]["momentum_buffer"]
    assert len(parts["optimizer"]) == len(parameters)
