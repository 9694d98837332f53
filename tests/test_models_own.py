"""Networks of one's own, by import path: how they are called, and what a run must be able to go on from."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lrtrain.checkpoint import format
from lrtrain.engine.precision import make_deterministic
from lrtrain.engine.state import load_module
from lrtrain.errors import ConfigError
from lrtrain.models.loading import load_unchanged
from tests.test_models_build import built


def test_a_network_may_say_its_state_as_a_plain_dict(tmp_path: Path) -> None:
    class Own(nn.Linear):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return dict(super().state_dict(*args, **kwargs))

    step = format.write(tmp_path, 0, {"model": (one := Own(2, 2)).state_dict()}, {})
    load_module(other := Own(2, 2), format.open_checkpoint(step), "model")
    assert torch.equal(one.weight, other.weight)


def test_an_import_path_is_called_with_what_its_signature_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = types.ModuleType("my_networks")

    def plain(num_classes: int) -> nn.Module:
        return nn.Linear(4, num_classes)

    def with_channels(num_classes: int, in_channels: int, width: int = 1) -> nn.Module:
        return nn.Conv2d(in_channels, num_classes * width, 1)

    mine.__dict__.update(plain=plain, with_channels=with_channels, number=lambda num_classes: 3, word="net")
    monkeypatch.setitem(sys.modules, "my_networks", mine)
    assert built("my_networks:plain").parameters == 35
    wide = built("my_networks:with_channels", in_channels=2, width=2).module
    assert wide.get_parameter("weight").shape[:2] == (14, 2)
    for name, message in (("number", "must return a torch.nn.Module, not int"), ("word", "not callable")):
        with pytest.raises(ConfigError, match=message):
            built(f"my_networks:{name}")


def test_a_network_that_no_checkpoint_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"calls": 0}

    class Untold(nn.Linear):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return {"weight": super().state_dict(*args, **kwargs)["weight"]}

    class Renamed(nn.Linear):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return {f"own.{name}": value for name, value in super().state_dict(*args, **kwargs).items()}

    class Lossy(nn.Linear):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return {name: value.half() for name, value in super().state_dict(*args, **kwargs).items()}

    mine = types.ModuleType("my_networks")
    mine.__dict__.update(
        lazy=lambda num_classes: nn.LazyLinear(num_classes),
        counting=lambda num_classes: Counting(4, 2),
        sparse=lambda num_classes: with_buffer(torch.eye(2).to_sparse()),
        exact=lambda num_classes: with_buffer(torch.zeros(2, dtype=torch.complex128)),
        coarse=lambda num_classes: with_buffer(torch.zeros(2).to(torch.float8_e4m3fn)),
        deep=lambda num_classes: with_buffer(torch.zeros((1,) * 17)),
        nowhere=lambda num_classes: nn.Linear(4, num_classes, device="meta"),
        lossy=lambda num_classes: Lossy(4, num_classes),
        renamed=lambda num_classes: Renamed(4, num_classes),
        untold=lambda num_classes: Untold(4, num_classes),
        clamped=lambda num_classes: clamped(nn.Linear(4, num_classes)),
    )
    monkeypatch.setitem(sys.modules, "my_networks", mine)
    for name, message in (
        ("lazy", "no size yet for weight: its layer is lazy"),
        ("counting", "a dict as _extra_state"),
        ("renamed", r"cannot load what its own state_dict\(\) gives: .*Missing key"),
        ("untold", r"trains bias, and its state_dict\(\) leaves it out"),
        ("clamped", "the model changes its 'weight' as it is loaded"),
        ("nowhere", "no memory for weight: it is on the meta device"),
        ("lossy", r"weight as float32 \(\d+, 4\), and its state_dict\(\) gives it as float16"),
        ("sparse", "'own' is sparse_coo, which a checkpoint cannot hold"),
        ("exact", "'own' is complex128, which a checkpoint cannot hold"),
        ("coarse", "'own' is float8_e4m3fn, which a checkpoint cannot hold"),
        ("deep", r"'own' has the shape \(1, 1.*, which a checkpoint cannot hold"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            built(f"my_networks:{name}")
        assert caught.value.problems[0].where == "model.name"


def test_a_network_may_save_what_it_trains_in_another_form(monkeypatch: pytest.MonkeyPatch) -> None:
    class Turned(nn.Linear):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return {"own": torch.cat([self.weight.detach(), self.bias.detach()[:, None]], 1).T.contiguous()}

        def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
            both = state["own"].T
            return super().load_state_dict({"weight": both[:, :-1], "bias": both[:, -1]})

    mine = types.ModuleType("my_networks")
    mine.__dict__.update(turned=lambda num_classes: Turned(4, num_classes))
    monkeypatch.setitem(sys.modules, "my_networks", mine)
    assert built("my_networks:turned").module.state_dict()["own"].shape == (5, 7)


def test_a_network_may_put_other_parameters_in_place_of_its_own_as_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An optimizer would go on to train those that it was made for, and the network would stay as it was."""

    class Assigned(nn.Linear):
        def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
            return super().load_state_dict(state, assign=True)

    class Made(nn.Linear):
        def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
            self.weight = nn.Parameter(torch.empty_like(state[f"{prefix}weight"]))
            super()._load_from_state_dict(state, prefix, *args)

    mine = types.ModuleType("my_networks")
    mine.__dict__.update(assigned=lambda num_classes: Assigned(4, num_classes))
    mine.__dict__.update(made=lambda num_classes: nn.Sequential(nn.Linear(3, 4), Made(4, num_classes)))
    monkeypatch.setitem(sys.modules, "my_networks", mine)
    for name in ("assigned", "made"):
        module = built(f"my_networks:{name}").module
        known = dict(module.named_parameters())
        state = {name: tensor + 1 for name, tensor in module.state_dict().items()}
        load_unchanged(module, state, {name: tensor.clone() for name, tensor in state.items()})
        assert all(parameter is known[name] for name, parameter in module.named_parameters())
        assert all(torch.equal(parameter, state[name]) for name, parameter in module.named_parameters())


def test_what_a_network_saves_in_half_under_other_names_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(nn.Linear):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return {f"half.{name}": value.half() for name, value in super().state_dict(*args, **kwargs).items()}

        def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
            return super().load_state_dict({name[5:]: value for name, value in state.items()})

    class Flat(nn.Linear):
        def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
            self.weight = nn.Parameter(state["weight"].reshape(-1))

    mine = types.ModuleType("my_networks")
    mine.__dict__.update(half=lambda num_classes: Half(4, num_classes), flat=lambda num_classes: Flat(4, num_classes))
    monkeypatch.setitem(sys.modules, "my_networks", mine)
    for name, words in (("half", "'weight' is another one after it was saved"), ("flat", "another 'weight' after")):
        with pytest.raises(ConfigError, match=words):
            built(f"my_networks:{name}")


def clamped(module: nn.Module) -> nn.Module:
    def clamp(module: nn.Module, state: dict[str, torch.Tensor], *_: object) -> None:
        state["weight"] = state["weight"].clamp(-0.01, 0.01)

    module.register_load_state_dict_pre_hook(clamp)
    return module


def with_buffer(own: torch.Tensor) -> nn.Module:
    module = nn.Linear(4, 2)
    module.register_buffer("own", own)
    return module


def test_what_is_expanded_or_a_view_is_given_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch writes into neither, so that no checkpoint could be loaded into them."""
    phases = torch.tensor([1 + 2j, 3 - 4j])
    mine = types.ModuleType("my_networks")
    monkeypatch.setitem(sys.modules, "my_networks", mine)
    for own in (torch.arange(3.0).expand(4, 3), nn.Parameter(torch.ones(1, 3).expand(4, 3)), phases.conj(),
                phases.conj().imag):  # fmt: skip
        expected = own.detach().clone()
        monkeypatch.setattr(mine, "net", lambda num_classes, own=own: with_buffer(own), raising=False)
        module = built("my_networks:net").module
        found = module.state_dict()["own"]
        assert torch.equal(found, expected)
        assert found.is_contiguous()
        assert not found.is_conj()
        assert not found.is_neg()
        module.load_state_dict({name: tensor + 1 for name, tensor in module.state_dict().items()})
        assert torch.equal(module.get_buffer("own"), expected + 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_network_computes_at_first_what_it_computes_later() -> None:
    """Else a resumed run, where torch.jit has fused nothing yet, is not the run that was left alone."""
    torch.jit.set_fusion_strategy([("STATIC", 2), ("DYNAMIC", 10)])  # as torch begins
    make_deterministic(torch.device("cpu"), False)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Sigmoid(), nn.Conv2d(8, 4, 3), nn.Tanh())
    scripted, images = torch.jit.script(body), torch.randn(8, 3, 32, 32)
    gradients = []
    for _ in range(4):
        scripted.zero_grad()
        scripted(images).square().sum().backward()
        gradients.append(body[0].weight.grad.clone())
    assert all(torch.equal(gradients[0], later) for later in gradients)
