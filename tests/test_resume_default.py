"""`lrtrain fit --resume` in the folder of ./lrtrain.yaml: the run goes on as it began, and says what is not used."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrtrain.commands.changes import tell_of_edits
from lrtrain.sinks.console import Screen
from lrtrain.sinks.run_dir import RunDir
from tests.hostile import Typed
from tests.test_fit import QUICK, RICH


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Typed:
    monkeypatch.chdir(tmp_path)
    return Typed(monkeypatch, capfd)


def test_what_was_edited_since_is_named(typed: Typed) -> None:
    Path("lrtrain.yaml").write_text(QUICK)
    assert typed("fit").code == 0
    ended = typed("fit", "--resume")
    assert (ended.code, "already complete" in ended.out, "note" in ended.out) == (0, True, False), ended.err
    Path("lrtrain.yaml").write_text(
        QUICK.replace("lr: 0.05", "lr: 0.01").replace("epochs: 3", "epochs: 9") + "mixup: 0.1"
    )
    ended = typed("fit", "--resume")
    assert ended.code == 0, ended.err
    said = " ".join(ended.out.split())
    assert "what lrtrain.yaml says otherwise is not used: epochs, mixup, optimizer.lr" in said
    assert "note" not in typed("fit", "--resume", "--out", "runs/lrtrain").out
    Path("lrtrain.yaml").write_text("epochs: [")
    assert typed("fit", "--resume").code == 0


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("degrees: 10", "degrees: 20", "dataset.transforms.train"),
        ("[{name: Resize, size: 16}, ", "[", "dataset.transforms.train, dataset.transforms.val"),
        (", RGB]", ", Grayscale, RGB]", "dataset.transforms.val"),
        ("root: photos", "root: other", "dataset.root"),
        ("precision: auto", "precision: fp32", "precision"),
        ("precision: auto", "device: cuda", "device"),
        ("precision: auto", "", None),
        ("precision: auto", "deterministic: false", None),
        (", RGB]", ", RGB, Identity, ToImage, {name: ToDtype, dtype: float32, scale: true}]", None),
        (", RGB]", ", {name: Compose, transforms: [RGB, ToTensor]}]", None),
        (", RGB]", ", {name: Compose, transforms: [Grayscale, RGB]}]", "dataset.transforms.val"),
        ("root: photos", "root: ./x/../photos", "dataset.root"),
        ("degrees: 10", "degrees: 10.0", None),
    ],
)
def test_edits_of_what_is_resolved_are_found(
    typed: Typed, photos: Path, capfd: pytest.CaptureFixture[str], old: str, new: str, key: str | None
) -> None:
    config = """
steps: 1
batch_size: 8
precision: auto
model: small_cnn
optimizer: {name: SGD, lr: 0.1}
dataset:
  name: imagefolder
  root: photos
  transforms:
    train: [{name: Resize, size: 16}, {name: RandomRotation, degrees: 10}, {name: CenterCrop, size: 16}]
    val: [{name: Resize, size: 16}, {name: CenterCrop, size: 16}, RGB]
"""
    Path("lrtrain.yaml").write_text(config)
    ended = typed("fit")
    assert ended.code == 0, ended.err
    Path("lrtrain.yaml").write_text(config.replace(old, new))
    capfd.readouterr()
    tell_of_edits(RunDir(Path("runs/lrtrain")), Screen())
    said = " ".join(capfd.readouterr().out.split())
    assert said.rpartition("what lrtrain.yaml says otherwise is not used: ")[2] == (key or "")


@pytest.mark.parametrize("data", ["digits", "photos"])
def test_of_an_unchanged_config_nothing_is_told(
    typed: Typed, photos: Path, capfd: pytest.CaptureFixture[str], data: str
) -> None:
    """What was decided automatically, or written from / on, is no edit."""
    config = RICH.replace("tests.nets:with_dropout", "small_cnn").replace('params: "^head"', 'params: "^fc"')
    if data == "photos":
        begin, end = config.index("dataset:"), config.index("optimizer:")
        config = config[:begin] + "dataset: {name: imagefolder, root: photos}\ncache: off\n" + config[end:]
        config = config.replace("batch_size: 100", "batch_size: 8").replace("epochs: 3", "steps: 10")
    Path("lrtrain.yaml").write_text(config.replace("workers: 1", "workers: 0").replace("epochs: 3", "steps: 10"))
    ended = typed("fit")
    assert ended.code == 0, ended.err
    capfd.readouterr()
    tell_of_edits(RunDir(Path("runs/lrtrain")), Screen())
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", ["\u0645\u06cc\u200c\u062e.yaml", "a\tb.yaml", "new\nline.yaml", "\udce4.yaml"])
def test_a_config_may_have_a_name_that_is_not_printed_as_it_is(typed: Typed, name: str) -> None:
    Path(name).write_text(QUICK)
    assert typed("fit", name).code == 0
    ended = typed("fit", name, "--resume")
    assert (ended.code, "already complete" in ended.out) == (0, True), ended.err
