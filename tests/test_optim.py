"""Parameter groups, layers and optimizers."""

from __future__ import annotations

import signal
import sys
import threading
import types
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from lrtrain import lookup
from lrtrain.config.duration import Duration
from lrtrain.config.schema import Model, Optimizer
from lrtrain.config.yaml import dotted
from lrtrain.errors import ConfigError
from lrtrain.models.build import build_model
from lrtrain.models.small_cnn import small_cnn
from lrtrain.optim.build import build_optimizer, declared_momentum, momentum_of
from lrtrain.optim.groups import ParamGroup, make_groups
from lrtrain.optim.layers import layer_numbers

CPU = torch.device("cpu")


def where(*loc: str | int) -> str:
    return dotted(loc)


def config(**section: Any) -> Optimizer:
    return Optimizer(**{"name": "SGD", "lr": 0.1, **section})


def groups_of(module: nn.Module, **section: Any) -> dict[str, ParamGroup]:
    return {group.name: group for group in make_groups(module, config(**section), where)}


def optimizer_of(module: nn.Module, **section: Any) -> torch.optim.Optimizer:
    return build_optimizer(make_groups(module, config(**section), where), config(**section), CPU, where)


def error_of(module: nn.Module, **section: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        optimizer_of(module, **section)
    return caught.value


def net() -> nn.Module:
    return small_cnn(5, 3, 4)


def test_without_groups_everything_is_default() -> None:
    module = net()
    groups = groups_of(module)
    assert list(groups) == ["default"]
    assert groups["default"].parameter_names == tuple(name for name, _ in module.named_parameters())
    assert groups["default"].lr == 0.1


def test_groups_keep_the_configs_order_and_the_first_match_wins() -> None:
    groups = groups_of(
        net(),
        groups=[
            {"params": r"^fc\.", "name": "head", "lr": 0.5},
            {"params": "norm_and_bias", "weight_decay": 0},
            {"params": "^conv[12]", "lr_scale": 0.5, "frozen_until": Duration.parse("2ep"), "momentum": 0.5},
        ],
    )
    assert {name: group.lr for name, group in groups.items()} == {
        "head": 0.5,
        "norm_and_bias": 0.1,
        "^conv[12]": 0.05,
        "default": 0.1,
    }
    assert groups["head"].parameter_names == ("fc.weight", "fc.bias")
    assert groups["norm_and_bias"].parameter_names == tuple(
        f"bn{i}.{kind}" for i in (1, 2, 3) for kind in ("weight", "bias")
    )
    assert groups["norm_and_bias"].options == {"weight_decay": 0}
    assert groups["^conv[12]"].frozen_until == Duration.parse("2ep")
    assert groups["default"].parameter_names == ("conv3.weight",)


def test_default_is_absent_where_nothing_is_left() -> None:
    assert list(groups_of(net(), groups=[{"params": "."}])) == ["."]


@given(st.lists(st.sampled_from(["conv", "bn", "weight$", "^fc", "norm_and_bias", r"\d\.bias"]), unique=True))
def test_every_parameter_is_in_exactly_one_group(patterns: list[str]) -> None:
    module = net()
    try:
        groups = groups_of(module, groups=[{"params": pattern} for pattern in patterns])
    except ConfigError as error:
        assert "no parameters are left" in str(error)  # noqa: PT017
        return
    for group in groups.values():
        named = zip(group.parameter_names, group.parameters, strict=True)
        assert all(module.get_parameter(name) is parameter for name, parameter in named)
    names = [name for group in groups.values() for name in group.parameter_names]
    assert sorted(names) == sorted(name for name, _ in module.named_parameters())


def test_frozen_parameters_are_left_out_and_tied_ones_count_once() -> None:
    module = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3)})
    module["b"].weight = module["a"].weight
    module["c"].requires_grad_(False)
    assert groups_of(module)["default"].parameter_names == ("a.weight", "a.bias", "b.bias")
    assert "no trainable parameter matches '^c'" in str(error_of(module, groups=[{"params": "^c"}]))
    assert "no trainable" in str(error_of(module.requires_grad_(False)))


@pytest.mark.parametrize(
    ("groups", "message", "at", "hint"),
    [
        ([{"params": "^clasifier"}], "matches '^clasifier'", "optimizer.groups[0].params", "conv1, bn1, conv2"),
        ([{"params": r"^conv4\.weight"}], "matches", "optimizer.groups[0].params", "near it are conv"),
        ([{"params": "(fc"}], "must be a regular expression", "optimizer.groups[0].params", None),
        (
            [{"params": "bias"}, {"params": r"fc\.bias"}],
            r"for group 'fc\\.bias': what it matches is in 'bias'",
            "optimizer.groups[1].params",
            "move this group up",
        ),
        (
            [{"params": "conv1", "name": "a"}, {"params": "conv2", "name": "a"}],
            "two groups are called 'a'",
            "optimizer.groups[1].name",
            None,
        ),
        ([{"params": "conv1", "name": "default"}], "'default'", "optimizer.groups[0].name", None),
        (
            [{"params": "fc", "weight_decy": 0}],
            "no argument 'weight_decy'",
            "optimizer.groups[0].weight_decy",
            "did you mean 'weight_decay'?",
        ),
        ([{"params": "fc", "betas": [0.9, 0.9]}], "no argument 'betas'", "optimizer.groups[0].betas", None),
        ([{"params": "fc", "fused": True}], "holds for the whole optimizer", "optimizer.groups[0].fused", None),
        ([{"params": "conv1", "momentum": -1}], "Invalid momentum value: -1", "optimizer.groups", None),
    ],
)
def test_a_group_that_cannot_be_is_refused_where_it_stands(
    groups: list[Any], message: str, at: str, hint: str | None
) -> None:
    problem = error_of(net(), groups=groups).problems[0]
    assert message in problem.what
    assert problem.where == at
    assert hint is None or hint in str(problem.hint)


LAYERS = {
    "resnet18": 10,
    "efficientnet_b0": 19,
    "vit_b_16": 14,
    "convnext_tiny": 23,
    "swin_t": 17,
    "small_cnn": 4,
    "googlenet": 13,
    "alexnet": 8,
    "resnet9": 7,
    "densenet121": 9,
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_count_from_the_stem_to_the_head(name: str) -> None:
    with torch.device("meta"):
        module = build_model(Model(name=name), 7, 3, 0, where).module
    numbers = layer_numbers(module)
    assert sorted(numbers) == sorted(name for name, _ in module.named_parameters())
    assert set(numbers.values()) == set(range(LAYERS[name]))
    first = next(f"{name}.weight" for name, m in module.named_modules() if isinstance(m, nn.Conv2d))
    assert numbers[first] == 0
    head = {number for name, number in numbers.items() if module.get_parameter(name).shape[0] == 7}
    assert head == {LAYERS[name] - 1}


def test_a_vits_tokens_belong_to_its_stem_and_its_last_norm_to_its_last_block() -> None:
    with torch.device("meta"):
        numbers = layer_numbers(build_model(Model(name="vit_b_16"), 7, 3, 0, where).module)
    assert numbers["class_token"] == numbers["encoder.pos_embedding"] == numbers["conv_proj.weight"] == 0
    assert numbers["encoder.layers.encoder_layer_11.ln_1.weight"] == numbers["encoder.ln.weight"] == 12


def test_what_follows_the_blocks_of_a_timm_network_is_its_head() -> None:
    timm = pytest.importorskip("timm")
    numbers = layer_numbers(timm.create_model("test_vit", num_classes=7))
    blocks = sorted({number for name, number in numbers.items() if name.startswith("blocks.")})
    assert blocks == list(range(1, len(blocks) + 1))
    assert numbers["cls_token"] == numbers["patch_embed.proj.weight"] == 0
    assert numbers["norm.weight"] == numbers["head.weight"] == len(blocks) + 1


def test_layer_decay_multiplies_each_groups_lr_from_the_head_down() -> None:
    groups = groups_of(
        net(),
        layer_decay=0.5,
        groups=[
            {
                "params": "norm_and_bias",
                "name": "1d",
                "lr_scale": 2.0,
                "weight_decay": 0,
                "frozen_until": Duration.parse("10%"),
            }
        ],
    )
    assert {name: group.lr for name, group in groups.items()} == {
        "1d.layer0": 0.2 * 0.5**3,
        "1d.layer1": 0.2 * 0.5**2,
        "1d.layer2": 0.2 * 0.5,
        "1d.layer3": 0.2,
        "default.layer0": 0.1 * 0.5**3,
        "default.layer1": 0.1 * 0.5**2,
        "default.layer2": 0.1 * 0.5,
        "default.layer3": 0.1,
    }
    assert groups["1d.layer1"].parameter_names == ("bn2.weight", "bn2.bias")
    assert groups["1d.layer3"].options == {"weight_decay": 0}
    assert groups["1d.layer3"].frozen_until == Duration.parse("10%")
    assert groups["default.layer3"].parameter_names == ("fc.weight",)


@pytest.mark.parametrize("name", lookup.names("optimizer"))
def test_every_optimizer_of_torch_takes_a_step_that_lowers_the_loss(name: str) -> None:
    torch.manual_seed(0)
    layers = nn.Linear(3 * 64, 16, bias=False), nn.ReLU(), nn.Linear(16, 5, bias=False)
    matrices = nn.Sequential(nn.Flatten(), *layers)
    module = matrices if name == "Muon" else net()
    optimizer = optimizer_of(module, name=name, lr=0.01, groups=[{"params": "1.*weight", "lr": 0.005}])
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8) % 5
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.01]


def test_torch_groups_stand_in_order_with_their_own_arguments() -> None:
    module = net()
    optimizer = optimizer_of(
        module,
        name="AdamW",
        betas=[0.8, 0.99],
        weight_decay=0.1,
        groups=[{"params": "norm_and_bias", "weight_decay": 0, "betas": [0.7, 0.9]}, {"params": "fc", "lr": 1.0}],
    )
    seen = [(g["lr"], g["weight_decay"], g["betas"], len(g["params"])) for g in optimizer.param_groups]
    assert seen == [(0.1, 0, (0.7, 0.9), 7), (1.0, 0.1, (0.8, 0.99), 1), (0.1, 0.1, (0.8, 0.99), 3)]


@pytest.mark.parametrize(
    ("section", "fused"),
    [
        ({"name": "SGD"}, True),
        ({"name": "Adam"}, True),
        ({"name": "AdamW"}, True),
        ({"name": "Adagrad"}, True),
        ({"name": "SGD", "fused": False}, False),
        ({"name": "SGD", "foreach": True}, None),
        ({"name": "torch.optim:SGD"}, True),
        ({"name": "RMSprop"}, None),
    ],
)
def test_a_fused_kernel_is_used_unless_the_user_chose(section: dict[str, Any], fused: bool | None) -> None:
    assert optimizer_of(net(), **section).param_groups[0].get("fused") is fused


def test_muon_explains_why_it_cannot_train_a_convolutional_network() -> None:
    problem = error_of(net(), name="Muon").problems[0]
    assert "conv1.weight has 4, bn1.weight has 1, bn1.bias has 1 and 7 more" in problem.what
    assert problem.where == "optimizer.name"


def test_a_third_partys_optimizer_is_held_to_its_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(torch.optim.SGD):
        pass

    mine = types.ModuleType("my_optimizers")
    mine.__dict__.update(Mine=Mine, not_one=lambda params, **_: object())
    monkeypatch.setitem(sys.modules, "my_optimizers", mine)
    assert type(optimizer_of(net(), name="my_optimizers:Mine", momentum=0.5)) is Mine
    mistyped = [{"params": "fc", "weigth_decay": 0}]
    typo = error_of(net(), name="my_optimizers:Mine", groups=mistyped).problems[0]
    assert "weigth_decay" in typo.what
    assert "did you mean 'weight_decay'?" in str(typo.hint)
    assert "must be a torch.optim.Optimizer" in str(error_of(net(), name="my_optimizers:not_one"))


@pytest.mark.parametrize(
    ("section", "message", "at"),
    [
        ({"name": "SDG"}, "no optimizer 'SDG'", "optimizer.name"),
        ({"name": "nowhere:Opt"}, "cannot import", "optimizer.name"),
        ({"name": "SGD", "nesterov": True}, "Nesterov momentum requires", "optimizer"),
        ({"name": "AdamW", "betas": [1.5, 0.9]}, "Invalid beta parameter", "optimizer"),
        ({"name": "AdamW", "betas": 0.9}, "AdamW cannot be built with lr=0.1, betas=0.9", "optimizer"),
        ({"name": "SGD", "momentun": 0.9}, "momentun", "optimizer"),
        ({"momentum": 0.9, "dampening": "x"}, "SGD cannot make a step with lr=0.1, momentum=0.9", "optimizer"),
        (
            {"name": "RMSprop", "capturable": True},
            "RMSprop cannot make a step with lr=0.1, capturable=True",
            "optimizer",
        ),
        ({"name": "ASGD", "t0": "x"}, "ASGD cannot make a step", "optimizer"),
        ({"name": "torch.optim:LBFGS"}, "cannot make a step", "optimizer"),
    ],
)
def test_an_impossible_optimizer_is_refused(section: dict[str, Any], message: str, at: str) -> None:
    problem = error_of(net(), **section).problems[0]
    assert message in problem.what
    assert problem.where == at


def mine(monkeypatch: pytest.MonkeyPatch, step: Any) -> str:
    """The name of an SGD that does something else beside each step."""

    class Mine(torch.optim.SGD):
        k = 0

        def step(self, closure: Any = None) -> Any:
            step(self)
            return super().step(closure)

    module = types.ModuleType("my_optimizers")
    module.__dict__.update(Mine=Mine)
    monkeypatch.setitem(sys.modules, "my_optimizers", module)
    return "my_optimizers:Mine"


def counted_in(held: dict[str, Any], start: Any) -> None:
    held["k"] = held.get("k", start) + 1


def fifth(own: Any) -> bool:
    kept = own.state[own.param_groups[0]["params"][0]]
    kept["step"] = kept.get("step", 0) + 1
    return bool(kept["step"] == 5)


def gradients_in(own: Any) -> None:
    own.means = getattr(own, "means", {})
    for p in own.param_groups[0]["params"]:
        own.means[p] = own.means.get(p, 0) + p.grad


@pytest.mark.parametrize(
    ("step", "key"),
    [
        (lambda own: counted_in(vars(own), 0), "k"),
        (lambda own: counted_in(own.param_groups[-1], 0), "param_groups[0].k"),
        (lambda own: counted_in(vars(own), torch.zeros(())), "k"),
        (lambda own: counted_in(own.param_groups[-1], torch.zeros(())), "param_groups[0].k"),
        (lambda own: counted_in(vars(own).setdefault("counts", {}), 0), "counts['k']"),
        (gradients_in, "means[0]"),
        (lambda own: (keeps("step", 1)(own), counted_in(vars(own), 0)), "k"),
        (lambda own: fifth(own) and counted_in(vars(own), 0), "k"),
    ],
)
def test_an_optimizer_that_counts_where_no_checkpoint_looks_is_refused(
    monkeypatch: pytest.MonkeyPatch, step: Any, key: str
) -> None:
    problem = error_of(net(), name=mine(monkeypatch, step)).problems[0]
    assert f"changes {key!r}" in problem.what
    assert "state" in str(problem.hint)


FLAT = torch.zeros(4)


def keeps(key: Any, value: Any) -> Any:
    return lambda own: own.state[own.param_groups[0]["params"][0]].update({key: value})


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (keeps("best", float("inf")), "a number inf as 'best'"),
        (keeps("history", [1.0]), "a list as 'history'"),
        (keeps("phase", torch.zeros(2, dtype=torch.complex128)), "complex128, which a checkpoint cannot hold"),
        (lambda own: own.state.update(k=torch.zeros(1)), "a Tensor as state['k']"),
        (keeps("low", torch.full((2, 2), -torch.inf)), "values that are not finite as 'low'"),
        (keeps("m/1", torch.zeros(2)), "a Tensor as 'm/1', a key that is not text or has a '/'"),
        (keeps(1, torch.zeros(2)), "a Tensor as 1, a key that is not text"),
        (keeps("near", torch.eye(2).to_sparse()), "sparse_coo, which a checkpoint cannot hold"),
        (lambda own: [keeps(key, FLAT[i:])(own) for i, key in enumerate("mn")], "as 'n' memory that a parameter or"),
        (lambda own: keeps("w", own.param_groups[0]["params"][0].detach())(own), "as 'w' memory that a parameter or"),
    ],
)
def test_an_optimizer_whose_state_no_checkpoint_holds_is_refused_before_it_trains(
    monkeypatch: pytest.MonkeyPatch, step: Any, message: str
) -> None:
    problem = error_of(net(), name=mine(monkeypatch, step)).problems[0]
    assert message in problem.what
    assert problem.where == "optimizer"
    assert problem.hint


def test_an_optimizer_that_keeps_more_tensors_than_a_checkpoint_holds_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = net()
    count = len(list(module.parameters()))
    monkeypatch.setattr("lrtrain.tensor_header.MAX_TENSORS", 3 * count)
    optimizer_of(module, name="AdamW")
    monkeypatch.setattr("lrtrain.tensor_header.MAX_TENSORS", 3 * count - 1)
    problem = error_of(module, name="AdamW").problems[0]
    assert f"at most {3 * count - 1} tensors; these are {3 * count}" in problem.what
    assert problem.where == "optimizer"


def test_what_an_optimizer_fills_again_or_holds_beside_its_state_is_not_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tables as those of RAdam, and its parameters, gradients and state by other names."""

    def step(own: Any) -> None:
        params = own.param_groups[0]["params"]
        own.table, own.all = [[1, 0.5, None]], [*params, *(p.grad for p in params)]
        own.by_parameter = {p: own.state[p] for p in params}

    optimizer_of(net(), name=mine(monkeypatch, step))


@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RAdam"])
def test_betas_may_be_whole_numbers(name: str) -> None:
    assert optimizer_of(net(), name=name, betas=[0, 0.99]).param_groups[0]["betas"] == (0.0, 0.99)
    groups = [{"params": "fc", "betas": [0, 0]}]
    assert optimizer_of(net(), name=name, groups=groups).param_groups[0]["betas"] == (0.0, 0.0)


def test_the_step_that_is_tried_draws_nothing_and_leaves_the_network_alone() -> None:
    stepped: list[Any] = []
    hook = register_optimizer_step_post_hook(lambda *args: stepped.append(args))
    module = net()
    before, state = [p.clone() for p in module.parameters()], torch.get_rng_state()
    optimizer = optimizer_of(module, name="AdamW")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, was) for p, was in zip(module.parameters(), before, strict=True))
    assert not optimizer.state
    assert not stepped  # whoever counts a training's steps counts none
    hook.remove()


def test_momentum_is_the_first_beta_or_none() -> None:
    expected = {"SGD": 0.0, "RMSprop": 0.0, "AdamW": 0.9, "NAdam": 0.9, "Adagrad": None, "Adadelta": None}
    found = {name: momentum_of(optimizer_of(net(), name=name).param_groups[0]) for name in expected}
    assert found == expected
    assert momentum_of({"momentum": 0.9}) == 0.9


@pytest.mark.parametrize("name", [n for n in lookup.names("optimizer") if n != "Muon"])
def test_the_momentum_read_from_a_signature_is_that_of_the_optimizer_built(name: str) -> None:
    for extra in ({}, {"momentum": 0.7}, {"betas": [0.8, 0.99]}):
        if not extra.keys() <= lookup.arguments("optimizer", name).defaults.keys():  # type: ignore[union-attr]
            continue
        section = Optimizer.model_validate({"name": name, "lr": 0.1, **extra})
        built = optimizer_of(net(), name=name, **extra)
        assert declared_momentum(section, where) == momentum_of(built.param_groups[0])


@pytest.mark.parametrize("pattern", [r"([a-z0-9.]+)+$x", "(.*)*x!", "(a|aa|aaa)*!", ".*.*.*.*.*.*.*.*.*.*.*.*!"])
def test_a_pattern_that_would_never_end_is_refused(pattern: str) -> None:
    module = nn.ModuleDict({"a" * 60: nn.Linear(2, 2)})
    error = error_of(module, groups=[{"params": pattern}])
    assert "takes longer than 2 s" in error.problems[0].what
    assert error.problems[0].where == "optimizer.groups[0].params"
    assert "in place of (a+)+ write a+" in str(error.problems[0].hint)
    assert signal.getsignal(signal.SIGVTALRM) == signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a" * 1001, "at most 1,000 characters; got 1,001"),
        ("(" * 499 + "a" + ")" * 499, "is none"),
        ("a{9999999999}", "is none"),
    ],
)
def test_a_pattern_that_is_too_much_is_refused(pattern: str, message: str) -> None:
    assert message in error_of(net(), groups=[{"params": pattern}]).problems[0].what


def test_all_patterns_together_are_bounded() -> None:
    """Each of these takes a part of a second."""
    module = nn.ModuleDict({f"{i:02d}" + "a" * 23: nn.Linear(2, 2, bias=False) for i in range(40)})
    patterns = [f"^{name[:2]}(?:([a-z])|([a-z.])){{21}}!|^{name}" for name in module]
    error = error_of(module, groups=[{"params": pattern} for pattern in patterns])
    assert "takes longer than 2 s" in error.problems[0].what


def test_patterns_are_searched_outside_the_main_thread_too() -> None:
    found: list[dict[str, ParamGroup]] = []
    thread = threading.Thread(target=lambda: found.append(groups_of(net(), groups=[{"params": "^fc"}])))
    thread.start()
    thread.join()
    assert list(found[0]) == ["^fc", "default"]
