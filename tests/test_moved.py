"""Images and starting weights that moved, or changed, since the run began."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.hostile import Typed, assert_clear
from tests.shards.making import samples, shard
from tests.test_hostile_checkpoint import manifest_of, rewrite, trained, typed

__all__ = ["trained", "typed"]
FOLDER = """
epochs: 1
batch_size: 8
model: {name: small_cnn, width: 4}
dataset: {name: imagefolder, root: photos, transforms: {train: [{name: Resize, size: [16, 16]}]}}
optimizer: {name: SGD, lr: 0.05}
workers: 0
"""


@pytest.fixture
def on_photos(typed: Typed, photos: Path) -> Path:
    (photos.parent / "p.yaml").write_text(FOLDER)
    ended = typed("fit", "p.yaml", "--out", "moving")
    assert ended.code == 0, ended.err
    return photos


def test_images_may_be_moved(typed: Typed, on_photos: Path) -> None:
    moved = on_photos.rename(on_photos.with_name("elsewhere"))
    longer = ("fit", "--resume", "--out", "moving", "--extend", "hold")
    assert_clear(typed(*longer, "--set", "epochs=2"), 3, "--set dataset.root=FOLDER")
    for epochs in (2, 3):
        ended = typed(*longer, "--set", f"epochs={epochs}", "--set", "dataset.root=elsewhere")
        assert ended.code == 0, ended.err
    moved.joinpath("train", "red", "0.jpg").unlink()
    ended = typed(*longer, "--set", "epochs=4", "--set", "dataset.root=elsewhere")
    assert_clear(ended, 4, "train/red: 12 images when the run began, 11 now")


@pytest.mark.parametrize("name", ["csv", "webdataset"])
def test_so_may_those_of_a_manifest_and_of_shards(typed: Typed, on_photos: Path, name: str) -> None:
    if name == "webdataset":
        pytest.importorskip("webdataset")
        parts = {"train": [0, 1] * 5, "val": [1, 0] * 3}
        for split, labels in parts.items():
            shard(on_photos / f"{split}.tar", samples(*labels))
        keys = {split: f"{split}.tar" for split in parts}
    else:
        files = [f"train/{label}/{i}.jpg,{label},train" for label in ("red", "blue") for i in range(12)]
        files += [f"val/{label}/{i}.jpg,{label},val" for label in ("red", "blue") for i in range(6)]
        (on_photos / "m.csv").write_text("\n".join(["path,label,split", *files, ""]))
        keys = {"manifest": "m.csv"}

    def places(folder: Path) -> list[str]:
        return [word for key, file in keys.items() for word in ("--set", f"dataset.{key}={folder.name}/{file}")]

    named = FOLDER.replace("imagefolder, root: photos", f"{name}, {', '.join(f'{key}: x' for key in keys)}")
    (on_photos.parent / "other.yaml").write_text(named)
    ended = typed("fit", "other.yaml", "--out", "other", *places(on_photos))
    assert ended.code == 0, ended.err
    moved = on_photos.rename(on_photos.with_name("elsewhere"))
    resume = ("fit", "--resume", "--out", "other", *places(moved))
    ended = typed(*resume, "--extend", "hold", "--set", "epochs=2")
    assert ended.code == 0, ended.err
    if name == "csv":
        moved.joinpath("m.csv").write_text("\n".join(["path,label,split", *files[1:], ""]))
    else:
        shard(moved / "train.tar", samples(1, 0, *parts["train"][2:]))
    assert_clear(typed(*resume, "--extend", "hold", "--set", "epochs=3"), 4, "the dataset is not the one")


def test_another_number_of_images_is_told_as_that(typed: Typed, on_photos: Path) -> None:
    """Not by what follows from it: a last batch of one image, where the model has BatchNorm."""
    for i in range(9):
        shutil.copy(on_photos / "train" / "red" / "0.jpg", on_photos / "train" / "red" / f"more{i}.jpg")
    assert_clear(typed("fit", "--resume", "--out", "moving"), 4, "train/red: 12 images when the run began, 21 now")


CHECKPOINT = Path("run/checkpoints/step-00000004/model.safetensors")
WEIGHTS = Path("w.safetensors")


@pytest.fixture
def from_weights(typed: Typed, tmp_path: Path) -> str:
    """A config, written to c.yaml, that starts from WEIGHTS."""
    shutil.copy(CHECKPOINT, WEIGHTS)
    config = (tmp_path / "c.yaml").read_text().replace("width: 4}", f"width: 4, weights: {WEIGHTS}}}")
    (tmp_path / "c.yaml").write_text(config)
    return config


def extend(steps: int) -> tuple[str, ...]:
    return ("--extend", "hold", "--set", f"steps={steps}")


def test_the_weights_that_a_run_began_with_are_not_needed_to_go_on(typed: Typed, from_weights: str) -> None:
    assert typed("fit", "c.yaml", "--out", "tuned").code == 0
    WEIGHTS.unlink()
    for target in ("tuned", "tuned/config.yaml"):
        assert typed("check", target).code == 0
    for more in (["c.yaml"], extend(6), ["c.yaml", *extend(8)]):
        ended = typed("fit", "--resume", "--out", "tuned", *more)
        assert ended.code == 0, ended.err


@pytest.mark.parametrize("lists", [", transforms: {train: [ROTATE]}", ", transforms: {train: [ROTATE], val: []}"])
def test_a_foreign_runs_transforms_are_not_built_for_want_of_its_weights(
    typed: Typed, from_weights: str, lists: str
) -> None:
    drawn = lists.replace("ROTATE", "{name: RandomRotation, degrees: 10}")
    Path("d.yaml").write_text(from_weights.replace("dataset: digits", f"dataset: {{name: digits{drawn}}}"))
    assert typed("fit", "d.yaml", "--out", "drawn", "--set", "steps=4").code == 0
    WEIGHTS.unlink()
    ended = typed("fit", "d.yaml", "--resume", "--out", "drawn", *extend(6))
    assert ended.code == 0, ended.err
    edited = ("fit", "c.yaml", "--resume", "--out", "drawn", "--set", "steps=6")
    assert_clear(typed(*edited), 2, "dataset.transforms.train was")
    foreign = Path("drawn", "config.yaml")
    foreign.write_text(foreign.read_text().replace("name: RandomRotation\n", "name: os:mkdir\n      path: made\n"))
    assert_clear(typed(*edited), 2, "dataset.transforms.train is [{'name': 'os:mkdir'")
    assert not Path("made").exists()
    shutil.copy(CHECKPOINT, WEIGHTS)
    assert_clear(typed(*edited), 2, "dataset.transforms.train is [{'name': 'os:mkdir'")
    assert not Path("made").exists()


def test_weights_may_move_but_not_be_others(typed: Typed, from_weights: str) -> None:
    assert typed("fit", "c.yaml", "--out", "tuned").code == 0
    resume = ("fit", "c.yaml", "--resume", "--out", "tuned")
    Path("c.yaml").write_text(from_weights.replace("w.safetensors", "other.safetensors"))
    assert_clear(typed(*resume), 2, "model.weights was", "other.safetensors")
    moved = Path("moved", "w.safetensors")  # with the project
    moved.parent.mkdir()
    moved.write_bytes(b"and others now")
    Path("c.yaml").write_text(from_weights.replace("w.safetensors", "moved/w.safetensors"))
    # The old ones are there, so these are others of the same name.
    assert_clear(typed(*resume), 2, "model.weights was", "moved/w.safetensors")
    WEIGHTS.unlink()
    ended = typed(*resume, *extend(10))
    assert ended.code == 0, ended.err
    assert typed("fit", "--resume", "--out", "tuned", *extend(11)).code == 0


def test_weights_that_moved_and_came_back_are_no_edit(typed: Typed, from_weights: str) -> None:
    """The run says where they were when it began, whichever config goes on with it."""
    assert typed("fit", "c.yaml", "--out", "tuned").code == 0
    Path("moved").mkdir()
    moved = WEIGHTS.rename(Path("moved") / WEIGHTS)
    Path("c.yaml").write_text(from_weights.replace("w.safetensors", "moved/w.safetensors"))
    for number, more in enumerate(([], ["c.yaml"], ["c.yaml"], ["c.yaml"])):
        ended = typed("fit", *more, "--resume", "--out", "tuned", *extend(5 + number))
        assert ended.code == 0, ended.err
    assert typed("evaluate", "tuned", "--checkpoint", "last").code == 0
    moved.rename(WEIGHTS)
    newest = sorted(Path("tuned", "checkpoints").glob("step-*"))[-1]
    shutil.rmtree(newest)
    for command in (("fit", "--resume", "--out", "tuned"), ("evaluate", "tuned")):
        ended = typed(*command)
        assert ended.code == 0, ended.err
    said = [json.loads(file.read_text()) for file in Path("tuned", "checkpoints").glob("step-*/manifest.json")]
    assert {manifest["config"]["model"]["weights"] for manifest in said} == {str(WEIGHTS.absolute())}


def test_a_run_whose_checkpoints_say_where_its_weights_moved_goes_on(typed: Typed, from_weights: str) -> None:
    """As those of earlier versions do."""
    assert typed("fit", "c.yaml", "--out", "tuned").code == 0
    newest = sorted(Path("tuned", "checkpoints").glob("step-*"))[-1]
    config = manifest_of(newest)["config"]
    config["model"]["weights"] = str(Path("elsewhere", WEIGHTS).absolute())
    rewrite(newest, config=config)
    for command in (("fit", "--resume", "--out", "tuned", *extend(6)), ("evaluate", "tuned")):
        ended = typed(*command)
        assert ended.code == 0, ended.err
