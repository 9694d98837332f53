"""Networks by name: heads, stems, gray images, arguments, normalisation."""

from __future__ import annotations

import copy
import os
import socket
import zipfile
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torchvision import models as tv

from lrtrain import lookup
from lrtrain.build import channels_last
from lrtrain.checkpoint import format
from lrtrain.config.schema import Model
from lrtrain.config.yaml import dotted
from lrtrain.engine.state import load_module
from lrtrain.errors import CheckpointError, ConfigError, EnvironmentFault
from lrtrain.models import build
from lrtrain.models.build import BuiltModel, build_model

TORCHVISION = [name for name in lookup.names("model") if name not in lookup.ours("model")]
SMALLEST = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11",
    "vit_b_32",
    "wide_resnet50_2",
]
AUXILIARY = {"googlenet", "inception_v3"}


def where(*loc: str | int) -> str:
    return dotted(loc)


@pytest.mark.parametrize("kind", ["model", "scheduler", "dataset"])
def test_what_is_offered_as_ours_is_there(kind: lookup.Kind) -> None:
    assert all(callable(lookup.find(kind, name)) for name in lookup.ours(kind))
    if kind == "model":
        assert lookup.ours(kind) == ("airbench", "resnet9", "small_cnn")


def built(
    name: str, num_classes: int = 7, in_channels: int = 3, seed: int = 0, load: bool = True, **section: Any
) -> BuiltModel:
    return build_model(Model(name=name, **section), num_classes, in_channels, seed, where, load)


def logits_shape(module: nn.Module, in_channels: int, size: int) -> tuple[int, ...]:
    """Of two images, without arithmetic."""
    with torch.no_grad():
        output = module.to("meta").eval()(torch.empty(2, in_channels, size, size, device="meta"))
    return tuple(output.shape)


@pytest.fixture
def no_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave parameters as they were allocated: what initialises is most of the time of large networks."""
    for name in ("kaiming_uniform_", "kaiming_normal_", "uniform_", "normal_", "trunc_normal_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)


def test_the_names_are_torchvisions_classification_models() -> None:
    assert sorted(tv.list_models(module=tv)) == TORCHVISION


@pytest.mark.parametrize("name", TORCHVISION)
@pytest.mark.usefixtures("no_arithmetic")
def test_every_torchvision_model_gets_a_head_for_the_number_of_classes(name: str) -> None:
    with torch.device("meta" if name.startswith("vit_") else "cpu"):
        module = built(name).module
    last = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert [m for m in last if m.weight.shape[0] == 7] == last[-1:]


@pytest.mark.parametrize("name", SMALLEST)
@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.usefixtures("no_arithmetic")
def test_every_family_takes_colour_and_gray_images(name: str, in_channels: int) -> None:
    model = built(name, in_channels=in_channels)
    assert logits_shape(model.module, in_channels, 224) == (2, 7)
    assert [note for note in model.notes if "3 -> 1 channels" in note] == list(model.notes)
    assert len(model.notes) == (in_channels == 1)


@pytest.mark.parametrize(
    "name",
    [
        "densenet121",
        "efficientnet_b0",
        "googlenet",
        "mnasnet0_5",
        "mobilenet_v3_small",
        "regnet_y_400mf",
        "shufflenet_v2_x0_5",
        "squeezenet1_1",
    ],
)
def test_a_network_takes_its_own_checkpoint(name: str, tmp_path: Path) -> None:
    """Some read their tensors by the version of their layers, which is beside these in a state dict."""
    state = built(name, seed=1).module.state_dict()
    step = format.write(tmp_path, 0, {"model": dict(state)}, {})
    other = built(name, seed=2).module
    load_module(other, format.open_checkpoint(step), "model")
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


def test_on_a_gpu_what_multiplies_images_is_laid_out_as_they_are_and_the_rest_stays() -> None:
    """Where `torch.nn.Module.to` fails of a network that has a Conv3d, too."""
    module = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, 3), nn.Linear(2, 2)])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    channels_last(module)
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    for layer in (nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1), nn.Conv2d(1, 4, 3)):
        torchs: Any = copy.deepcopy(layer)
        channels_last(layer)
        assert layer.weight.stride() == torchs.to(memory_format=torch.channels_last).weight.stride()


@pytest.mark.parametrize("name", SMALLEST)
@pytest.mark.usefixtures("no_arithmetic")
def test_pretrained_weights_of_every_family_load_and_the_new_head_is_reported(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_aux = {"aux_logits": True, "init_weights": True} if name in AUXILIARY else {}
    published = getattr(tv, name)(weights=None, **with_aux).to("meta").state_dict()
    monkeypatch.setattr(tv.WeightsEnum, "get_state_dict", lambda *_, **__: published)
    monkeypatch.setattr(torch.Tensor, "copy_", lambda tensor, other: tensor)  # only shapes are compared
    model = built(name, pretrained=True)
    assert model.head
    assert all(model.module.get_parameter(p).shape[0] == 7 for p in model.head)
    head = model.head[0].rpartition(".")[0]
    assert model.notes == (f"head {head}: 1000 -> 7 classes, new",)
    assert model.input_size == tv.get_model_weights(name).DEFAULT.transforms().crop_size[0]
    assert model.mean is not None
    assert len(model.mean) == 3


@pytest.mark.usefixtures("no_arithmetic")
def test_a_vit_is_built_for_the_image_size_of_its_published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        published = tv.vit_h_14(weights=None, image_size=518).state_dict()
    monkeypatch.setattr(tv.WeightsEnum, "get_state_dict", lambda *_, **__: published)
    with torch.device("meta"):
        model = built("vit_h_14", pretrained=True)
    assert model.input_size == 518
    assert model.head == ("heads.head.weight", "heads.head.bias")


def test_pretrained_values_arrive_and_the_head_starts_as_torch_starts_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    published = tv.squeezenet1_1(weights=None).state_dict()
    asked: dict[str, Any] = {}

    def get_state_dict(*_: Any, **kwargs: Any) -> Any:
        asked.update(kwargs)
        return published

    monkeypatch.setattr(tv.WeightsEnum, "get_state_dict", get_state_dict)
    model = built("squeezenet1_1", pretrained=True)
    assert asked == {"check_hash": True, "weights_only": True}
    for name, tensor in model.module.state_dict().items():
        if name not in model.head:
            assert torch.equal(tensor, published[name])
        elif tensor.ndim > 1:
            # torch's own initialisation of the layer: uniform within 1 / sqrt(fan in), not the family's.
            bound = tensor[0].numel() ** -0.5
            assert bound / 2 < float(tensor.abs().max()) <= bound
    assert built("squeezenet1_1").head == ()
    assert model.head == ("classifier.1.weight", "classifier.1.bias")
    thousand = built("squeezenet1_1", num_classes=1000, pretrained=True)
    assert thousand.head == ()
    assert "kept" in thousand.notes[0]


def test_load_false_leaves_the_weights_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_download", lambda *_: pytest.fail("downloaded"))
    model = built("resnet18", pretrained=True, load=False)
    assert (model.mean, model.head) == (None, ())
    assert built("small_cnn", weights="missing.safetensors", load=False).parameters > 0


def test_gray_filters_are_the_sum_over_the_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    published = tv.resnet18(weights=None).state_dict()
    monkeypatch.setattr(tv.WeightsEnum, "get_state_dict", lambda *_, **__: published)
    model = built("resnet18", in_channels=1, pretrained=True)
    summed = published["conv1.weight"].sum(1, keepdim=True)
    assert torch.equal(model.module.get_parameter("conv1.weight"), summed)
    assert model.notes == (
        "first convolution conv1: 3 -> 1 channels, weights summed",
        "head fc: 1000 -> 7 classes, new",
    )
    assert model.mean == pytest.approx(((0.485 + 0.456 + 0.406) / 3,))


@pytest.mark.usefixtures("no_arithmetic")
def test_googlenet_is_normalised_as_its_weights_were_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    published = tv.googlenet(weights=None, aux_logits=True, init_weights=True).state_dict()
    monkeypatch.setattr(tv.WeightsEnum, "get_state_dict", lambda *_, **__: published)
    assert built("googlenet", pretrained=True).mean == (0.5, 0.5, 0.5)
    assert built("googlenet", pretrained=True, transform_input=True).mean == (0.485, 0.456, 0.406)


def test_weights_that_cannot_be_downloaded_are_an_environment_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> Any:
        raise OSError("Name or service not known")

    monkeypatch.setattr(tv.WeightsEnum, "get_state_dict", offline)
    with pytest.raises(EnvironmentFault, match="resnet18") as caught:
        built("resnet18", pretrained=True)
    assert "weights: FILE" in str(caught.value)
    assert "model.pretrained" in str(caught.value)


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "wide_resnet50_2"])
@pytest.mark.usefixtures("no_arithmetic")
def test_a_small_stem_keeps_the_resolution_of_small_images(name: str) -> None:
    model = built(name, stem="small")
    seen: dict[str, tuple[int, ...]] = {}
    model.module.get_submodule("layer1").register_forward_hook(
        lambda _, args, __: seen.update(layer1=tuple(args[0].shape))
    )
    assert logits_shape(model.module, 3, 32) == (2, 7)
    assert seen["layer1"] == (2, 64, 32, 32)
    assert model.notes == ("small stem: conv1 is 3x3 with stride 1, no max-pool",)


def test_a_small_stem_takes_gray_images() -> None:
    assert logits_shape(built("resnet18", in_channels=1, stem="small").module, 1, 28) == (2, 7)


@pytest.mark.parametrize("name", ["squeezenet1_1", "small_cnn", "resnet9", "timm/resnet18"])
def test_a_small_stem_is_refused_outside_torchvisions_resnets(name: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match="ResNet family") as caught:
        built(name, stem="small")
    hint = caught.value.problems[0].hint
    assert hint is not None
    assert "resnet18" in hint
    assert "resnet9" not in hint


@pytest.mark.parametrize(("name", "size"), [("small_cnn", 8), ("resnet9", 32)])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_our_networks_learn_on_their_smallest_images(name: str, size: int, in_channels: int) -> None:
    module = built(name, in_channels=in_channels, width=8).module
    logits = module(torch.randn(4, in_channels, size, size))
    assert logits.shape == (4, 7)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


def test_initial_weights_follow_from_the_seed_and_leave_torchs_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = built("small_cnn", seed=3).module.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    same, other = (built("small_cnn", seed=seed).module.state_dict() for seed in (3, 4))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize(
    ("section", "message", "at"),
    [
        ({"name": "resnet81"}, "no model 'resnet81'", "model.name"),
        ({"name": "resnet18", "groups": "many"}, "resnet18 cannot be built with groups='many'", "model"),
        ({"name": "small_cnn", "widht": 3}, "widht", "model"),
        ({"name": "small_cnn", "width": -1}, "small_cnn cannot be built with width=-1", "model"),
        ({"name": "resnet18", "num_classes": 3}, "num_classes", "model"),
        ({"name": "googlenet", "aux_logits": True}, "three logits", "model.aux_logits"),
        ({"name": "resnet18", "pretrained": True, "weights": "a.pth"}, "contradict", "model.weights"),
        ({"name": "resnet18", "pretrained": True, "stem": "small"}, "contradict", "model.stem"),
        ({"name": "small_cnn", "pretrained": True}, "only torchvision's and timm's", "model.pretrained"),
        ({"name": "no_such_package:net"}, "cannot import 'no_such_package:net'", "model.name"),
    ],
)
def test_an_impossible_model_is_refused_at_its_line(section: dict[str, Any], message: str, at: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_model(Model(**section), 7, 3, 0, where)
    assert caught.value.problems[0].where == at


def test_channels_that_torchvision_does_not_know_are_refused() -> None:
    with pytest.raises(ConfigError, match="not of 4"):
        built("resnet18", in_channels=4)
    with pytest.raises(ConfigError, match="transform_input"):
        built("googlenet", in_channels=1, transform_input=True)


def test_timm_models_are_built_for_classes_and_channels() -> None:
    pytest.importorskip("timm")
    model = built("timm/test_efficientnet", in_channels=1, drop_rate=0.1)
    assert logits_shape(model.module, 1, 64) == (2, 7)
    assert (model.mean, model.notes) == (None, ())


def test_an_unknown_timm_model_is_named_with_its_neighbour() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match="timm has no model 'resnet_18'") as caught:
        built("timm/resnet_18")
    assert caught.value.problems[0].hint == "did you mean 'timm/resnet18'?"
    with pytest.raises(ConfigError, match="drop_rat"):
        built("timm/test_efficientnet", drop_rat=0.1)


@pytest.mark.parametrize("argument", sorted(build._TIMM_LOADS))
def test_timm_is_not_told_of_files_that_lrtrain_has_not_looked_at(argument: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=argument) as caught:
        built("timm/test_efficientnet", **{argument: "w.pth"})
    assert "weights: FILE" in str(caught.value.problems[0].hint)


def test_timms_pretrained_weights_come_with_their_normalisation(tmp_path: Any, monkeypatch: Any) -> None:
    timm = pytest.importorskip("timm")
    monkeypatch.setattr(build, "_TIMM_LOADS", set())  # a file in place of a download
    published = timm.create_model("test_efficientnet", num_classes=1000)
    torch.save(published.state_dict(), tmp_path / "published.pth")
    overlay = {"file": str(tmp_path / "published.pth")}
    model = built("timm/test_efficientnet", in_channels=1, pretrained=True, pretrained_cfg_overlay=overlay)
    assert model.head == ("classifier.weight", "classifier.bias")
    assert model.notes[0] == "head classifier: 1000 -> 7 classes, new"
    assert model.mean == pytest.approx((0.449,))
    overlay["file"] = str(tmp_path / "missing.pth")
    with pytest.raises(EnvironmentFault, match="cannot download the weights of timm/test_efficientnet"):
        built("timm/test_efficientnet", pretrained=True, pretrained_cfg_overlay=overlay)
    no_home = Mock(side_effect=RuntimeError("Could not determine home directory."))  # as pathlib says it
    monkeypatch.setattr(timm, "create_model", no_home)
    with pytest.raises(EnvironmentFault, match="Could not determine home directory"):
        built("timm/test_efficientnet", pretrained=True)


@pytest.mark.parametrize("in_full", [False, True])
def test_timm_runs_no_code_of_a_file_that_it_cannot_read_as_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_full: bool
) -> None:
    """After a TypeError, as of an OrderedDict whose state is (None, {}), timm would load a file in full."""
    pytest.importorskip("timm")
    monkeypatch.setattr(build, "_TIMM_LOADS", set())  # a folder in place of timm's own cache
    monkeypatch.chdir(tmp_path)
    for name, value in (("TORCH_FORCE_WEIGHTS_ONLY_LOAD", None), ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")):
        monkeypatch.delenv(name, raising=False)
        if value and in_full:
            monkeypatch.setenv(name, value)
    pickled = (
        b"\x80\x02ccollections\nOrderedDict\n)RN}\x86b0cbuiltins\nopen\nX\x06\x00\x00\x00canaryX\x01\x00\x00\x00w\x86R."
    )
    with zipfile.ZipFile("w.pth", "w") as archive:
        for name, data in (("data.pkl", pickled), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"archive/{name}", data)
    before = dict(os.environ)
    cfg = {"url": "https://host.invalid/w.pth", "hf_hub_id": None}
    with pytest.raises(ConfigError, match="cannot be built"):
        built("timm/test_efficientnet", pretrained=True, pretrained_cfg_overlay=cfg, cache_dir=str(tmp_path))
    assert not Path("canary").exists()
    assert {name for name in os.environ if "FORCE" in name} == {name for name in before if "FORCE" in name}


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("mobilenet_v2", {"inverted_residual_setting": [[1, 16, 10**9, 1]]}),
        ("timm/mobilenetv2_100", {"depth_multiplier": 100.0}),
    ],
)
def test_a_network_of_layers_without_end_is_refused(
    name: str, args: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    monkeypatch.setattr(build, "_MOST_PARAMETERS", 500)
    with pytest.raises(ConfigError, match="more than 500 weights and biases"):
        built(name, **args)


@pytest.mark.parametrize("width", [10_000_000, 65_000_000])  # of the second the sizes are beyond 64 bits
def test_a_network_that_would_fill_the_memory_is_refused_before_it_does(width: int) -> None:
    with pytest.raises(EnvironmentFault, match=r"has weights of .* GiB, and this machine has"):
        built("resnet9", width=width)


def test_a_network_of_timms_that_would_fill_the_memory_is_refused_before_it_does() -> None:
    pytest.importorskip("timm")
    with pytest.raises(EnvironmentFault, match=r"has weights of .* GiB, and this machine has"):
        built("timm/vit_tiny_patch16_224", embed_dim=48_000, depth=8)


@pytest.mark.parametrize("args", [{"depth": 10**9}, {"depth_multiplier": -1e6}, {"depths": [2, [10**9]]}])
def test_what_timm_would_make_long_lists_of_is_refused(args: dict[str, Any]) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match="at most 50,000"):
        built("timm/vit_tiny_patch16_224", **args)


@pytest.mark.parametrize(
    ("there", "proxies", "said", "offline"),
    [(False, {}, None, "1"), (True, {}, None, None), (False, {"https": "p:1"}, None, None), (False, {}, "0", "0")],
)
def test_where_there_is_no_network_timm_is_not_to_try_for_a_minute(
    there: bool, proxies: dict[str, str], said: str | None, offline: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", said or "")
    if said is None:
        monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(build, "getproxies", lambda: proxies)
    monkeypatch.setattr("socket.getaddrinfo", Mock(side_effect=None if there else socket.gaierror(-2, "unknown")))
    build._spare_retries()
    assert os.environ.get("HF_HUB_OFFLINE") == offline


def test_weights_for_another_network_are_refused_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    published = tv.resnet18(weights=None).state_dict()
    monkeypatch.setattr(tv.WeightsEnum, "get_state_dict", lambda *_, **__: published)
    with pytest.raises(CheckpointError, match=r"missing are layer1\.2\.conv1\.weight") as caught:
        built("resnet34", pretrained=True)
    assert caught.value.problems[0].where == "model.pretrained"
