"""Weights files: what is read, what is refused, and what goes into a network."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from torchvision import models as tv

from lrtrain.config.schema import Model
from lrtrain.config.yaml import dotted
from lrtrain.errors import CheckpointError, EnvironmentFault
from lrtrain.models.build import BuiltModel, build_model
from lrtrain.models.infinite import infinite_buffers
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
        lambda s: {"net": s, "epoch": torch.tensor(3), "confusion": torch.zeros(2, 2)},
        lambda s: {"model": {"name": "small_cnn"}, "weights": s},
        lambda s: {"net": {"state_dict": s}},
        lambda s: {f"module.module.{k}": v for k, v in s.items()} | {"module.n_averaged": torch.tensor(3)},
        lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "loops": {}},
        lambda s: {"model": s, "schedule": {"milestones": Counter([30, 60, 60])}},
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
    wrapped = nn.ModuleDict({"model": masked(7, 3)})
    read, _ = load_weights_file(tmp_path / "w.safetensors", infinite_buffers(wrapped))
    assert read["mask"].equal(state["mask"])
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


def test_a_block_that_is_used_again_and_again_is_read(tmp_path: Path) -> None:
    module = nn.ModuleList([nn.Linear(40, 40)] * 12)
    torch.save(module.state_dict(), tmp_path / "w.pth")
    assert len(load_weights_file(tmp_path / "w.pth")[0]) == 24


def test_a_count_of_batches_may_be_of_fewer_bits(tmp_path: Path) -> None:
    torch.save({"bn.num_batches_tracked": torch.tensor(3, dtype=torch.int32)}, tmp_path / "w.pth")
    assert load_weights_file(tmp_path / "w.pth")[0]["bn.num_batches_tracked"] == 3


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
