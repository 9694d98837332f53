"""Weights files: what is read, what is refused, and what goes into a network."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from torchvision import models as tv
from torchvision.ops import FrozenBatchNorm2d

from lrtrain.config.schema import Model
from lrtrain.config.yaml import dotted
from lrtrain.errors import CheckpointError, EnvironmentFault
from lrtrain.models.build import BuiltModel, build_model
from lrtrain.models.loading import load_into
from lrtrain.models.small_cnn import small_cnn
from lrtrain.models.weights import load_weights_file, trained_with
from tests.nets import masked

LITE0 = Path(__file__).parents[2] / "shared" / "data" / "tf_efficientnet_lite0.safetensors"


def where(*loc: str | int) -> str:
    return dotted(loc)


def built(name: str, weights: Path, num_classes: int = 7, in_channels: int = 3, **section: Any) -> BuiltModel:
    return build_model(Model(name=name, weights=str(weights), **section), num_classes, in_channels, 0, where)


def state_of(num_classes: int, in_channels: int = 3) -> dict[str, Tensor]:
    return small_cnn(num_classes, in_channels, 4).state_dict()


def test_of_two_state_dicts_under_names_that_nobody_knows_none_is_taken(tmp_path: Path) -> None:
    torch.save({"net": state_of(5), "ema": state_of(5)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="holds two state dicts, 'net' and 'ema'"):
        load_weights_file(tmp_path / "w.pth")
    torch.save({"net": {"state_dict": state_of(5)}, "ema": state_of(5)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="holds two state dicts, 'net' and 'ema'"):
        load_weights_file(tmp_path / "w.pth")
    torch.save({**state_of(5), "optimizer": {"model": state_of(5)}}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="'optimizer' is not a plain tensor"):
        load_weights_file(tmp_path / "w.pth")
    torch.save({"n_averaged": torch.tensor(3)}, tmp_path / "w.pth")
    assert load_weights_file(tmp_path / "w.pth")[0].keys() == {"n_averaged"}
    content: dict[str, Any] = {"t": torch.ones(1)}
    content["model"] = content
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="'model' is not a plain tensor"):
        load_weights_file(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {"epoch": 3, "model_state_dict": s, "optimizer_state_dict": {"state": {}}},
        lambda s: {"state_dict": s, "model": {"name": "small_cnn"}},
        lambda s: {"model_state_dict": s, "model": {"name": "small_cnn"}, "state_dict": {"step": 3}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"model": {f"module._orig_mod.{k}": v for k, v in s.items()}},
        lambda s: {"net": s, "acc": 93.1, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {"n_averaged": torch.tensor(3)} | {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": s, "seed": 2**64 - 1},
        lambda s: {"net": s, "epoch": torch.tensor(3)},
        lambda s: {"model": {"name": "small_cnn"}, "weights": s},
        lambda s: {"net": {"state_dict": s}},
        lambda s: {f"module.module.{k}": v for k, v in s.items()} | {"module.n_averaged": torch.tensor(3)},
        lambda s: {"_orig_mod.n_averaged": torch.tensor(3)} | {f"_orig_mod.module.{k}": v for k, v in s.items()},
    ],
)
def test_a_torch_file_is_read_through_its_usual_wrappings(wrap: Any, tmp_path: Path) -> None:
    state = state_of(5)
    torch.save(wrap(state), tmp_path / "w.pth")
    read, metadata = load_weights_file(tmp_path / "w.pth")
    assert metadata == {}
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_of_two_state_dicts_none_is_chosen(tmp_path: Path) -> None:
    torch.save({"state_dict": state_of(5), "model": state_of(5)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="holds two state dicts, 'state_dict' and 'model'") as caught:
        load_weights_file(tmp_path / "w.pth")
    assert "save the one that is meant alone" in str(caught.value)


def test_a_safetensors_file_is_read_with_its_metadata(tmp_path: Path) -> None:
    save_file(state_of(5), tmp_path / "w.safetensors", {"mean": "0.5"})
    read, metadata = load_weights_file(tmp_path / "w.safetensors")
    assert read.keys() == state_of(5).keys()
    assert metadata == {"mean": "0.5"}


class Malicious:
    """Unpickling this would call a function."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("unpickled",)


def _bad_files(folder: Path) -> dict[str, Path]:
    whole = folder / "whole.safetensors"
    save_file(state_of(5), whole)
    torch.save(state_of(5), folder / "whole.pth")
    content = {
        "cut.safetensors": whole.read_bytes()[:-9],
        "empty.safetensors": b"",
        "text.safetensors": b"not a header",
        "cut.pth": (folder / "whole.pth").read_bytes()[:-200],
        "empty.pth": b"",
        "text.pt": b"weights",
        "code.pth": pickle.dumps({"w": Malicious()}),
        "name.onnx": b"",
    }
    for name, data in content.items():
        (folder / name).write_bytes(data)
    torch.save({"w": Malicious()}, folder / "code.pt")
    torch.save(nn.Linear(2, 2), folder / "module.pth")
    torch.save({"epoch": 3}, folder / "number.pth")
    torch.save({}, folder / "nothing.pth")
    torch.save([torch.zeros(1)], folder / "list.pth")
    torch.save({"w": torch.zeros(2, 2).to_sparse()}, folder / "sparse.pth")
    (folder / "folder.pth").mkdir()
    return {path.name: path for path in (*folder.iterdir(), folder / "missing.pth") if path.stem != "whole"}


def test_a_file_that_is_damaged_missing_or_holds_more_than_tensors_is_refused(tmp_path: Path) -> None:
    for name, path in _bad_files(tmp_path).items():
        with pytest.raises(CheckpointError) as caught:
            load_weights_file(path)
        assert path.name in str(caught.value), name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_are_not_finite_are_refused_with_their_tensor(
    value: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    state = state_of(5) | {"bn2.weight": torch.tensor([1.0, value]).to(dtype)}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"not finite, in 'bn2\.weight'"):
        load_weights_file(tmp_path / "w.safetensors")


def test_a_mask_of_infinities_is_read_where_the_network_has_one(tmp_path: Path) -> None:
    state = masked(7, 3).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    assert built("tests.nets:masked", tmp_path / "w.safetensors").module.state_dict()["mask"].equal(state["mask"])
    save_file(state | {"head.bias": torch.full((7,), torch.inf)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"not finite, in 'head\.bias'"):
        built("tests.nets:masked", tmp_path / "w.safetensors")


def test_a_file_without_read_permission_is_a_fault_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(state_of(5), tmp_path / "w.pth")

    def forbidden(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(torch, "load", forbidden)
    with pytest.raises(EnvironmentFault, match="Permission denied"):
        load_weights_file(tmp_path / "w.pth")


@given(old=st.integers(1, 12), new=st.integers(1, 12), gray=st.booleans())
@settings(max_examples=25, deadline=None)
def test_all_but_a_head_of_another_size_arrives(old: int, new: int, gray: bool) -> None:
    state, module = state_of(old), small_cnn(new, 1 if gray else 3, 4)
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    loaded = load_into(module, state, new, "a file")
    assert loaded.head == (() if old == new else ("fc.weight", "fc.bias"))
    assert loaded.notes[-1] == (
        f"head: {new} classes, kept as in a file" if old == new else f"head fc: {old} -> {new} classes, new"
    )
    expected = state | {name: own[name] for name in loaded.head}
    if gray:
        expected["conv1.weight"] = state["conv1.weight"].sum(1, keepdim=True)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv2.weight": None}, r"missing are conv2\.weight"),
        ({"extra.weight": torch.zeros(1)}, r"left over are extra\.weight"),
        ({"conv2.weight": torch.zeros(8, 5, 3, 3)}, r"conv2\.weight is 8x5x3x3 and must be 8x4x3x3"),
        ({"conv2.weight": torch.zeros(8, 4, 3, 3, dtype=torch.int8)}, "8x4x3x3 int8"),
        ({"bn1.bias": torch.zeros(5)}, r"bn1\.bias is 5 and must be 4"),
        ({"fc.weight": torch.zeros(9, 17), "fc.bias": torch.zeros(9)}, r"fc\.weight is 9x17 and must be 7x16"),
    ],
)
def test_any_other_mismatch_is_refused_by_name_and_changes_nothing(
    change: dict[str, Tensor | None], message: str
) -> None:
    state = {k: v for k, v in (state_of(9) | change).items() if v is not None}
    module = small_cnn(7, 3, 4)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_into(module, state, 7, "a file")
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("old", [3, 7])
def test_a_new_head_starts_as_torch_starts_a_layer_and_a_kept_one_as_it_was(old: int, tmp_path: Path) -> None:
    """EfficientNet's own initialisation of a head of seven classes is uniform within 0.38; torch's within 0.028."""
    state = build_model(Model(name="efficientnet_b0"), old, 3, 0, where).module.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    module = built("efficientnet_b0", tmp_path / "w.safetensors").module
    head = module.get_parameter("classifier.1.weight").detach()
    if old == 7:
        assert torch.equal(head, state["classifier.1.weight"])
        return
    bound = head.shape[1] ** -0.5
    assert bound / 2 < float(head.abs().max()) <= bound
    assert float(module.get_parameter("classifier.1.bias").detach().abs().max()) <= bound
    again = built("efficientnet_b0", tmp_path / "w.safetensors").module
    assert torch.equal(head, again.get_parameter("classifier.1.weight"))


def test_files_older_than_batch_counters_load() -> None:
    state = {name: tensor for name, tensor in state_of(7).items() if "num_batches_tracked" not in name}
    assert load_into(small_cnn(7, 3, 4), state, 7, "a file").head == ()


def test_densenets_old_names_load(tmp_path: Path) -> None:
    state = build_model(Model(name="densenet121"), 5, 3, 0, where).module.state_dict()
    old = {name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): t for name, t in state.items()}
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "w.pth")
    assert built("densenet121", tmp_path / "w.pth").notes[0] == "head classifier: 5 -> 7 classes, new"


def test_a_network_that_is_all_in_a_module_of_its_own_takes_its_weights(tmp_path: Path) -> None:
    def made() -> nn.Module:
        wrapped = nn.Module()
        wrapped.module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        return wrapped

    state, module = made().state_dict(), made()
    for name in ("w.pth", "w.safetensors"):
        save_file(state, tmp_path / name) if name.endswith("rs") else torch.save(state, tmp_path / name)
        load_into(module, load_weights_file(tmp_path / name)[0], 7, name)
        assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


def test_of_shared_tensors_one_name_is_enough(tmp_path: Path) -> None:
    """As safetensors' own save_model writes."""

    def made() -> nn.Module:
        module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
        module[1].weight = module[0].weight
        return module

    one, other = made(), made()
    save_model(one, str(tmp_path / "w.safetensors"))
    read = load_weights_file(tmp_path / "w.safetensors")[0]
    assert len(read) == 5
    load_into(other, read, 7, "w")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())
    read.pop("2.weight")
    with pytest.raises(CheckpointError, match=r"missing are 2\.weight"):
        load_into(other, read, 7, "w")


def test_every_convolution_that_sees_gray_images_takes_weights_for_colour() -> None:
    SpaceToDepth: Any = pytest.importorskip("timm.layers").SpaceToDepth

    class Branches(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(channels, 4, 3, padding=1), nn.Conv2d(channels, 4, 1)
            self.space = SpaceToDepth(4)
            self.deep = nn.Conv2d(16 * channels, 4, 1)
            self.depthwise = nn.Conv2d(4, 4, 3, groups=4)

        def forward(self, images: Tensor) -> Tensor:
            seen = self.wide(images) + self.narrow(images), self.deep(self.space(images))
            return seen[0].mean((2, 3)) + seen[1].mean((2, 3))

    colour, gray = Branches(3), Branches(1)
    loaded = load_into(gray, colour.state_dict(), 7, "w.pth")
    assert loaded.notes[:3] == (
        "first convolution wide: 3 -> 1 channels, weights summed",
        "convolution narrow: 3 -> 1 channels, weights summed",
        "convolution deep: 48 -> 16 channels, weights summed",
    )
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(gray(images), colour(images.expand(-1, 3, -1, -1)))
    # Elsewhere sixteen pixels of one colour may be side by side.
    other = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 8, 3)).state_dict()
    with pytest.raises(CheckpointError, match="shapes differ"):
        load_into(nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(16, 8, 3)), other, 7, "w.pth")


def test_no_tensor_of_a_file_takes_the_place_of_another() -> None:
    one = nn.Module()
    one.module = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"have two tensors for 'module\.weight'"):
        load_into(one, {**one.state_dict(), "weight": torch.ones(2, 2)}, 7, "w.pth")
    two = nn.Module()
    two.module = one
    state = {name.removeprefix("module.module."): torch.ones_like(value) for name, value in two.state_dict().items()}
    load_into(two, state, 7, "w.pth")
    assert torch.equal(one.module.weight, torch.ones(2, 2))


def test_a_network_that_answers_with_copies_of_its_state_is_loaded_too() -> None:
    class Own(nn.Linear):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return {name: value.clone() for name, value in super().state_dict(*args, **kwargs).items()}

    own = Own(2, 2)
    load_into(own, {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}, 2, "w.pth")
    assert torch.equal(own.weight, torch.ones(2, 2))


def test_what_a_network_computes_from_its_weights_as_it_is_loaded_is_computed() -> None:
    class Own(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("norm", torch.zeros(()), persistent=False)
            self.register_load_state_dict_post_hook(Own.loaded)

        def loaded(self, _: object) -> None:
            self.norm.copy_(self.weight.detach().norm())

    own = Own()
    load_into(own, {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}, 2, "w.pth")
    assert own.norm == 2


def test_a_frozen_batch_norm_takes_the_weights_of_one_that_counts() -> None:
    trained, frozen = nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential(FrozenBatchNorm2d(3))
    trained(torch.randn(8, 3, 4, 4))
    load_into(frozen, trained.state_dict(), 2, "w.pth")
    images = torch.randn(2, 3, 4, 4)
    assert torch.allclose(frozen(images), trained.eval()(images), atol=1e-6)


def test_a_network_that_names_its_tensors_as_no_module_of_its_own_is_loaded() -> None:
    class Own(nn.Sequential):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return {f"head.{name}": value for name, value in super().state_dict(*args, **kwargs).items()}

        def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
            return super().load_state_dict({name[5:]: value for name, value in state.items()}, *args, **kwargs)

    own, other = Own(nn.Linear(2, 5)), Own(nn.Linear(2, 7))
    assert load_into(own, other.state_dict(), 5, "w.pth").head == ("head.0.weight", "head.0.bias")
    same = Own(nn.Linear(2, 5))
    load_into(own, same.state_dict(), 5, "w.pth")
    assert torch.equal(own[0].weight, same[0].weight)


def test_a_block_that_is_used_again_and_again_is_read(tmp_path: Path) -> None:
    module = nn.ModuleList([nn.Linear(40, 40)] * 12)
    torch.save(module.state_dict(), tmp_path / "w.pth")
    assert len(load_weights_file(tmp_path / "w.pth")[0]) == 24


def test_a_count_of_batches_may_be_of_fewer_bits(tmp_path: Path) -> None:
    torch.save({"bn.num_batches_tracked": torch.tensor(3, dtype=torch.int32)}, tmp_path / "w.pth")
    assert load_weights_file(tmp_path / "w.pth")[0]["bn.num_batches_tracked"] == 3


def test_a_head_of_two_names_is_replaced_where_the_file_has_one() -> None:
    def made(classes: int) -> nn.Module:
        module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, classes))
        module.head = module[1]
        return module

    state = {name: value for name, value in made(10).state_dict().items() if not name.startswith("head")}
    assert load_into(made(5), state, 5, "w.pth").head == ("1.weight", "1.bias")


def test_the_names_in_vits_published_files_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision renames them as it loads; its own file of vit_b_16 has linear_1 and linear_2."""
    small = {"image_size": 32, "num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
    monkeypatch.setitem(
        vars(tv),
        "vit_b_16",
        lambda **kwargs: tv.VisionTransformer(patch_size=16, **small, num_classes=kwargs["num_classes"]),
    )
    state = tv.vit_b_16(num_classes=5).state_dict()
    old = {k.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): v for k, v in state.items()}
    assert old.keys() != state.keys()
    theirs = tv.vit_b_16(num_classes=5)
    theirs.load_state_dict(old)
    torch.save(old, tmp_path / "w.pth")
    module = tv.vit_b_16(num_classes=7)
    read, _ = load_weights_file(tmp_path / "w.pth")
    assert load_into(module, read, 7, "w.pth").head == ("heads.head.weight", "heads.head.bias")
    ours = module.state_dict()
    assert all(torch.equal(ours[k], v) for k, v in theirs.state_dict().items() if not k.startswith("heads"))


def test_the_normalisation_is_the_files_else_the_published_one(tmp_path: Path) -> None:
    state = build_model(Model(name="squeezenet1_1"), 5, 3, 0, where).module.state_dict()
    file = tmp_path / "w.safetensors"
    save_file(state, file)
    published = built("squeezenet1_1", file)
    assert (published.mean, published.input_size) == ((0.485, 0.456, 0.406), 224)
    assert published.notes[-1].startswith("normalisation: that of squeezenet1_1's published weights")
    save_file(state, file, {"mean": "0.1, 0.2 3e-1", "std": "[1, 2, 4.5]", "input": "3x96x96"})
    own = built("squeezenet1_1", file)
    assert (own.mean, own.std, own.input_size) == ((0.1, 0.2, 0.3), (1, 2, 4.5), 96)
    assert built("squeezenet1_1", file, in_channels=1).std == (2.5,)


def test_the_normalisation_of_a_runs_weights_is_the_runs(tmp_path: Path) -> None:
    state = build_model(Model(name="squeezenet1_1"), 5, 3, 0, where).module.state_dict()
    file = tmp_path / "model.safetensors"
    save_file(state, file)

    def beside(*val: object) -> object:
        manifest = {"config": {"dataset": {"transforms": {"val": val}}}}
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        return built("squeezenet1_1", file)

    scaled = {"name": "ToDtype", "dtype": "float32", "scale": True}
    normalize = {"name": "Normalize", "mean": [0.49, 0.48, 1e-05], "std": [0.25, 0.24, 0.26]}
    of_a_run = beside({"name": "Resize", "size": 9}, scaled, normalize)
    assert (of_a_run.mean, of_a_run.std, of_a_run.input_size) == ((0.49, 0.48, 1e-05), (0.25, 0.24, 0.26), 224)
    crop, resize, pad = ({"name": name, "size": 96} for name in ("CenterCrop", "Resize", "Pad"))
    for sized, size in (
        ([crop], 96),
        ([{**crop, "size": [96]}], 96),
        ([{**crop, "size": [96, 96]}], 96),
        ([{**crop, "size": [96, 97]}], 224),  # the published one
        ([resize], 224),
        ([{**resize, "size": [96, 96]}], 96),
        ([crop, {**resize, "size": 32}], 32),
        ([crop, {**resize, "size": [32, 32]}], 32),
        ([resize, {**crop, "size": 64}, {"name": "Grayscale"}], 64),
        ([crop, pad], 224),
        ([crop, {"name": "Resize", "size": None, "max_size": 40}], 224),
    ):
        found = beside(*sized, scaled, normalize)
        assert (found.mean, found.input_size) == (of_a_run.mean, size), sized
    val, train = [scaled, normalize], [{"name": "RandomResizedCrop", "size": [64, 64]}, scaled, normalize]
    (tmp_path / "manifest.json").write_text(
        json.dumps({"config": {"dataset": {"transforms": {"val": val, "train": train}}}})
    )
    assert built("squeezenet1_1", file).input_size == 224  # it may have been trained on images as they came
    config = json.loads((tmp_path / "manifest.json").read_text())["config"]
    assert trained_with(config, ("val", "train"))["input"] == "64"
    assert of_a_run.notes[-1] == "normalisation: that of the run that the weights are of"
    published = (0.485, 0.456, 0.406)
    assert beside(scaled, {"name": "Resize", "size": 9}, normalize).mean == of_a_run.mean
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "best.safetensors").symlink_to(file)
    assert built("squeezenet1_1", tmp_path / "link" / "best.safetensors").mean == of_a_run.mean
    (tmp_path / "store" / "snapshot").mkdir(parents=True)  # as a hub's cache: named by what is in them
    for name in ("model.safetensors", "manifest.json"):
        shutil.copy(tmp_path / name, tmp_path / "store" / f"{len(name)}")
        (tmp_path / "store" / "snapshot" / name).symlink_to(f"../{len(name)}")
    assert built("squeezenet1_1", tmp_path / "store" / "snapshot" / "model.safetensors").mean == of_a_run.mean
    endless = {**normalize, "mean": [10**400]}
    for val in ((), (scaled,), ({**scaled, "scale": False}, normalize), (scaled, "Normalize"), (scaled, endless)):
        assert beside(*val).mean == published
    (tmp_path / "manifest.json").write_text("{")
    assert built("squeezenet1_1", file).mean == published
    save_file(state, file, {"mean": "0.1 0.2 0.3", "std": "1 2 3"})
    beside(scaled, normalize)
    assert built("squeezenet1_1", file).mean == (0.1, 0.2, 0.3)


def test_a_small_stem_has_no_published_normalisation(tmp_path: Path) -> None:
    state = build_model(Model(name="resnet18", stem="small"), 5, 3, 0, where).module.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    assert built("resnet18", tmp_path / "w.safetensors", stem="small").mean is None


@pytest.mark.parametrize("metadata", [{"mean": "0.5"}, {"mean": "0.5 0.5", "std": "1"}, {"mean": "0", "std": "0"}])
def test_a_normalisation_that_cannot_be_is_refused(metadata: dict[str, str], tmp_path: Path) -> None:
    save_file(state_of(7), tmp_path / "w.safetensors", metadata)
    with pytest.raises(CheckpointError, match="must name") as caught:
        built("small_cnn", tmp_path / "w.safetensors", width=4)
    assert caught.value.problems[0].where == "model.weights"


def test_weights_of_a_standard_stem_do_not_fit_a_small_one(tmp_path: Path) -> None:
    state = build_model(Model(name="resnet18"), 5, 3, 0, where).module.state_dict()
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"conv1\.weight is 64x3x7x7 and must be 64x3x3x3") as caught:
        built("resnet18", tmp_path / "w.pth", stem="small")
    assert "`stem`" in str(caught.value.problems[0].hint)


@pytest.mark.skipif(not LITE0.exists(), reason="the development data are not here")
def test_published_weights_load_into_timms_network() -> None:
    pytest.importorskip("timm")
    model = built("timm/tf_efficientnet_lite0", LITE0, num_classes=2)
    assert model.notes == ("head classifier: 1000 -> 2 classes, new",)
    assert model.head == ("classifier.weight", "classifier.bias")
    assert (model.mean, model.std, model.input_size) == ((0.498,) * 3, (0.502,) * 3, 224)


@pytest.mark.parametrize("layer", ["conv1", "conv2", "bn2"])
def test_a_layer_in_the_middle_with_as_many_outputs_as_classes_is_no_head(layer: str) -> None:
    module = small_cnn(8, 1, 8)  # the first two convolutions have 8 outputs
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    size = {"conv1": 8, "conv2": 16, "bn2": 16}[layer]
    module = small_cnn(size, 1, 8)
    state |= {k: v for k, v in module.state_dict().items() if k.startswith("fc.")}
    state |= {name: tensor[:3] for name, tensor in state.items() if name.startswith(layer) and tensor.dim()}
    if layer == "conv2":  # it might be one; but its tensors are of several sizes
        module.conv2.bias = nn.Parameter(torch.zeros(size))
        state["conv2.bias"] = torch.zeros(5)
    with pytest.raises(CheckpointError, match=rf"shapes differ: {layer}\."):
        load_into(module, state, size, "a file")


def test_a_first_convolution_of_whole_numbers_is_refused_for_gray_images_too() -> None:
    state = state_of(7)
    first = next(iter(state))
    assert state[first].dim() == 4
    with pytest.raises(CheckpointError, match=f"{first} is .* int8"):
        load_into(small_cnn(7, 1, 4), state | {first: state[first].to(torch.int8)}, 7, "a file")


def test_colours_are_summed_in_float32() -> None:
    module = small_cnn(7, 1, 4)
    state = {name: tensor.half() for name, tensor in small_cnn(7, 3, 4).state_dict().items()}
    state["conv1.weight"] = torch.full_like(state["conv1.weight"], 3e4)
    load_into(module, state, 7, "a file")
    assert torch.equal(module.conv1.weight, torch.full_like(module.conv1.weight, 9e4))
