"""A config that lies among the class folders: what lrtrain wrote there would be a class."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import test_evaluate as evaluated
from tests.folders import noise
from tests.hostile import Typed, assert_clear

CONFIG = evaluated.CONFIG.replace("here/photos", ".")


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Typed:
    noise(tmp_path, {"made": 12})
    for label in "ab":
        (tmp_path / "made" / label).rename(tmp_path / label)
    (tmp_path / "made").rmdir()
    (tmp_path / "lrtrain.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return Typed(monkeypatch, capfd)


@pytest.mark.parametrize("into", [(), ("--out", "sweeps/first"), ("--out", "a/run"), ("--out", "x/../runs")])
@pytest.mark.parametrize("command", ["fit", "range-test"])
@pytest.mark.parametrize("data", ["imagefolder", "ImageFolder"])
def test_nothing_is_written_among_the_class_folders(
    typed: Typed, command: str, into: tuple[str, ...], data: str
) -> None:
    config = Path("lrtrain.yaml").read_text().replace("imagefolder", data)
    Path("lrtrain.yaml").write_text(config)
    assert_clear(typed(command, *into), 2, "would lie among the class folders in", "move the class folders into one")
    assert sorted(path.name for path in Path().iterdir()) == ["a", "b", "lrtrain.yaml"]
    assert not Path("a/run").exists()
    ended = typed(command, "--out", f"../{Path.cwd().name}-out")
    assert ended.code == 0, ended.err


def test_a_dataset_that_was_downloaded_here_has_its_classes_further_down(typed: Typed) -> None:
    for label in ("Forest", "River"):
        shutil.copytree("a", f"eurosat/2750/{label}")
    shutil.rmtree("a")
    shutil.rmtree("b")
    Path("lrtrain.yaml").write_text(CONFIG.replace("imagefolder", "EuroSAT"))
    ended = typed("fit")
    assert ended.code == 0, ended.err
    assert_clear(typed("fit", "--out", "eurosat/2750/run"), 2, "would lie among the class folders in")


def test_with_train_and_val_there_is_room_beside_them(typed: Typed) -> None:
    for split in ("train", "val"):
        for label in "ab":
            shutil.copytree(label, f"{split}/{label}")
    for label in "ab":
        shutil.rmtree(label)
    Path("lrtrain.yaml").write_text(CONFIG.replace(", val_fraction: 0.25", ""))
    for command in (("fit",), ("range-test", "--steps", "20"), ("evaluate", "runs/lrtrain"), ("fit",)):
        ended = typed(*command)
        assert ended.code == 0, ended.err
    assert_clear(typed("fit", "--out", "val/c"), 2, "would lie among the class folders in")
