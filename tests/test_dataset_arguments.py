"""Arguments of datasets that are of the wrong kind, or fail only when the dataset is used, and where errors point to."""

from __future__ import annotations

import difflib
from pathlib import Path
from unittest.mock import patch

import pytest

from lrtrain.data import skip_list
from lrtrain.data.skip_list import named
from lrtrain.data.sources import webdataset
from tests.folders import opened, tree
from tests.hostile import Typed, assert_clear

CONFIG = """steps: 2
batch_size: 4
model: {name: small_cnn, width: 4}
optimizer: {name: SGD, lr: 0.05}
workers: 0
dataset:
  %s
"""
FOLDER = "name: imagefolder\n  root: data\n  val_fraction: 0.5\n  "
FAKE = "name: FakeData\n  "


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Typed:
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "data", {"a": 4, "b": 4})
    return Typed(monkeypatch, capfd)


# the section, the exit code, words of the error
CASES: list[tuple[str, int, tuple[str, ...]]] = [
    (
        "name: webdataset\n  root: data\n  train: a.tar",
        2,
        ("does not take 'root'", "dataset.root", "--set dataset.root=null"),
    ),
    (FOLDER + "skip_list: 3", 2, ("skip_list must be text; got 3", "c.yaml:10 dataset.skip_list", "put it in quotes")),
    (FOLDER + "skip_list: [a.txt]", 2, ("skip_list must be text; got ['a.txt']",)),
    (FOLDER + "skip_list: {a: 1}", 2, ("skip_list must be text",)),
    (FOLDER + "color: 3", 2, ("color must be rgb or gray; got 3", "c.yaml:10 dataset.color")),
    (FOLDER + "skip_list: none.txt", 3, ("cannot read `dataset.skip_list`", "c.yaml:10 dataset.skip_list")),
    ("name: csv\n  manifest: 3", 2, ("manifest must be text; got 3", "c.yaml:8 dataset.manifest")),
    ("name: csv\n  manifest: null", 2, ("manifest must be text; got None",)),
    ("name: csv\n  manifest: [m.csv]\n  color: 1\n  skip_list: 2", 2, ("manifest must", "color must", "skip_list must")),
    ("name: webdataset\n  train: a.tar\n  val_fraction: 0.5\n  classes: 3", 2, ("classes must be text; got 3",)),
    ("name: webdataset\n  train: a.tar\n  val_fraction: 0.5\n  skip_list: 3", 2, ("skip_list must be text",)),
    (FAKE + "splits: {train: 3}", 2, ("splits.train must be a mapping of arguments; got 3", "dataset.splits.train")),
    (FAKE + "splits: [train]", 2, ("splits must be a mapping; got ['train']", "c.yaml:8 dataset.splits")),
    (FAKE + "splits: 3", 2, ("splits must be a mapping; got 3",)),
    (FAKE + "splits: {train: {}, val: {foo: 1}}", 2, ("argument 'foo'", "dataset.splits.val.foo")),
    ("name: MNIST\n  root: data\n  train: true", 2, ("picks one split", "c.yaml:9 dataset.train")),
    ("name: SVHN\n  root: data\n  splits: {train: {split: foo}}", 2, ("'foo' for argument split", "dataset.splits.train.split")),
    (FAKE + "size: 9\n  image_size: [3, 9000, 9000]\n  val_fraction: 0.3", 2, ("image_size", "[3, 9000, 9000]", "490 MB")),
    (FAKE + 'size: "x"\n  val_fraction: 0.3', 3, ("FakeData (train) was opened, but cannot be used: TypeError",)),
    (FAKE + "size: 1.5\n  val_fraction: 0.3", 3, ("FakeData (train) was opened, but cannot be used: TypeError",)),
    (FAKE + "size: 3\n  num_classes: 0\n  val_fraction: 0.3", 3, ("FakeData (train) was opened, but cannot be used",)),
    (FAKE + "size: 30\n  image_size: [a]\n  val_fraction: 0.3", 3, ("FakeData (train) was opened, but cannot be used",)),
]  # fmt: skip


@pytest.mark.parametrize(("section", "code", "words"), CASES, ids=[row[0] for row in CASES])
def test_it_is_refused_where_it_stands(
    typed: Typed, tmp_path: Path, section: str, code: int, words: tuple[str, ...]
) -> None:
    if "webdataset" in section:
        pytest.importorskip("webdataset")
    (tmp_path / "c.yaml").write_text(CONFIG % section)
    ended = typed("preview", "c.yaml")
    assert "bug in lrtrain" not in ended.err
    assert ended.code == code, ended.err
    for word in words:
        assert word in " ".join(ended.err.split()), ended.err


def test_an_argument_may_stand_in_every_split(typed: Typed, tmp_path: Path) -> None:
    tree(tmp_path / "one", {"a": 4, "b": 4})
    split = f"{{root: {tmp_path / 'one'}}}"
    (tmp_path / "c.yaml").write_text(CONFIG % f"name: ImageFolder\n  splits: {{train: {split}, val: {split}}}")
    ended = typed("preview", "c.yaml")
    assert ended.code == 0, ended.err
    (tmp_path / "c.yaml").write_text(CONFIG % f"name: ImageFolder\n  splits: {{train: {split}, val: {{}}}}")
    assert "ImageFolder needs root" in typed("preview", "c.yaml").err


def test_what_is_absent_may_be_said_to_be(tmp_path: Path) -> None:
    tree(tmp_path, {"a": 4, "b": 4})
    assert len(opened(name="imagefolder", root=str(tmp_path), val_fraction=0.5, skip_list=None).train) == 4


def test_of_names_that_are_not_there_only_those_shown_are_compared(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("".join(f"a/no-{i}.png\n" for i in range(1000)))
    (tmp_path / "c.yaml").write_text(CONFIG % (FOLDER + "skip_list: s.txt"))
    with patch.object(skip_list, "_hint", wraps=skip_list._hint) as hint:
        ended = typed("fit", "c.yaml")
    assert ended.code == 3
    assert "names 'a/no-0.png', which is not in the dataset" in ended.err
    assert "and 980 more" in ended.err
    assert hint.call_count == 20
    with patch.object(skip_list, "_hint", return_value="x"):
        chosen, problems = named(str(tmp_path / "s.txt"), ["a/0.png"], lambda i: "a/0.png")
    assert not chosen.any()
    assert len(problems) == 1000


def test_long_names_are_not_compared_which_takes_minutes(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text(f"a/no.png\na/{'n' * 5000}.png\n")
    images = ["a/on.png", f"a/{'o' * 5000}.png"]
    with patch("difflib.get_close_matches", wraps=difflib.get_close_matches) as compared:
        _, problems = named(str(tmp_path / "s.txt"), images, images.__getitem__)
    assert [problem.hint for problem in problems] == [
        "did you mean 'a/on.png'?",
        "names are paths from the dataset's root, such as 'a/on.png'",
    ]
    assert [call.args[1] for call in compared.call_args_list] == [["a/on.png"], []]


def test_a_path_may_be_spelt_otherwise(tmp_path: Path) -> None:
    images = ["a/0.png", "a/1.png", "a/2.png", "a/3.png"]
    (tmp_path / "s.txt").write_text("a//0.png\n.//a/1.png\n a/x/../2.png\n")
    chosen, problems = named(str(tmp_path / "s.txt"), images, images.__getitem__)
    assert (chosen.tolist(), problems) == ([True, True, True, False], [])


@pytest.mark.parametrize("spelt", ["pets/cats/0.png", "./pets/cats/0.png", "pets//cats/0.png", "pets/cats/0.png "])
def test_an_images_name_goes_before_a_path_to_another_however_it_is_spelt(tmp_path: Path, spelt: str) -> None:
    images = ["cats/0.png", "pets/cats/0.png"]
    (tmp_path / "s.txt").write_text(spelt + "\n")
    chosen, problems = named(str(tmp_path / "s.txt"), images, lambda i: f"pets/{images[i]}")
    assert (chosen.tolist(), problems) == ([False, True], [])


def test_a_whole_path_is_known_where_the_root_is_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = ["train/c/0.png", "val/c/0.png"]
    (tmp_path / "s.txt").write_text(f"{tmp_path}/ph/val/c/0.png\n/elsewhere/val/c/0.png\n")
    chosen, problems = named("s.txt", images, lambda i: f"ph/{images[i]}")
    assert chosen.tolist() == [False, True]
    assert [problem.hint for problem in problems] == ["did you mean 'val/c/0.png'?"]


def test_a_bare_file_name_is_not_that_of_an_image_in_a_folder_with_invisible_letters(tmp_path: Path) -> None:
    names = ["cats\u200d/1.png", "dogs\u200d/1.png"]

    def chosen(text: str) -> tuple[list[bool], int]:
        (tmp_path / "s.txt").write_text(text, encoding="utf-8")
        found, problems = named(str(tmp_path / "s.txt"), names, lambda i: f"/data/pets/{names[i]}")
        return found.tolist(), len(problems)

    assert chosen("1.png") == ([False, False], 1)
    for text in ("/data/pets/cats\u200d/1.png", "pets/cats\\u200d/1.png", "cats\\u200d/1.png", names[0]):
        assert chosen(text) == ([True, False], 0)


def test_a_class_file_without_end_is_not_read(typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("webdataset")
    (tmp_path / "a.tar").write_bytes(b"")
    with open(tmp_path / "names.txt", "wb") as file:
        file.truncate(10**11)  # a hole
    section = "name: webdataset\n  train: a.tar\n  val_fraction: 0.5\n  classes: names.txt"
    (tmp_path / "c.yaml").write_text(CONFIG % section)
    assert_clear(typed("fit", "c.yaml"), 3, "names.txt", f"longer than {webdataset._MOST_CLASS_BYTES:,} bytes")
