"""Skip lists: what they name is left out, and what is no name of an image is refused."""

from __future__ import annotations

import os
import tarfile

import pytest

from lrtrain.data.fingerprint import fingerprint
from lrtrain.data.skip_list import named, written
from lrtrain.errors import ConfigError, DataError
from tests.folders import image, opened, refused, tree, write


@pytest.fixture
def folders(tmp_path):
    tree(tmp_path / "data", {"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 2})
    write(tmp_path / "data" / "train" / "a" / "#1 x.png", b"broken")
    write(tmp_path / "data" / "val" / "b" / "1.png", b"")
    return tmp_path


def skipping(folder, text, **more):
    (folder / "skip.txt").write_text(text, encoding="utf-8", errors="surrogateescape")
    return {"name": "imagefolder", "root": str(folder / "data"), "skip_list": str(folder / "skip.txt"), **more}


@pytest.mark.parametrize(
    "form", ["train/a/#1 x.png\nval/b/1.png\n", "./train/a/#1 x.png \r\n\n# no\n  {root}/val/b/1.png"]
)
def test_what_a_skip_list_names_is_left_out_and_the_rest_is_as_if_it_had_been_removed(folders, form):
    source = opened(**skipping(folders, form.replace("{root}", str(folders / "data"))))
    assert source.notes == (f"left out: 2 images named in {folders}/skip.txt",)
    (folders / "data" / "train" / "a" / "#1 x.png").unlink()
    (folders / "data" / "val" / "b" / "1.png").unlink()
    removed = opened(name="imagefolder", root=str(folders / "data"))
    assert source.train.names == removed.train.names
    assert fingerprint(source) == fingerprint(removed)


def test_what_is_skipped_is_not_held_out(folders):
    dataset = skipping(folders, "a/#1 x.png", val_fraction=0.5)
    source = opened(**{**dataset, "root": str(folders / "data" / "train")})
    assert source.counts() == {"train": {"a": 2, "b": 2}, "val": {"a": 2, "b": 2}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train/a/11.png", "'train/a/11.png', which is not in the dataset | did you mean 'train/a/1.png'?"),
        ("3.png", "did you mean 'train/a/3.png'?"),
        ("train/a/1.png  # blurred", "did you mean 'train/a/1.png'? A remark has a line of its own"),
        ("train/a/\0.png", "line 1 of"),
        ("x" * 50_000_000, "is no name of an image: b'xxx"),
        ("".join(f"{i}.png\n" for i in range(900_000)), "has more names than the dataset, of 13 images, can have"),
        ("zzz", "| names are paths from the dataset's root, such as 'train/a/#1 x.png'"),
        ("train/b/0.png\ntrain/b/1.png\ntrain/b/2.png\ntrain/b/3.png", "class 'b' has no training images left: all 4"),
        ("val/a/0.png\nval/a/1.png\nval/b/0.png\nval/b/1.png", "no image of split 'val' is left: all 4"),
    ],
)
def test_a_skip_list_that_is_wrong_is_refused(folders, text, words):
    assert words in refused(DataError, **skipping(folders, text))


def test_a_wrong_name_is_placed_by_its_line(folders):
    with pytest.raises(DataError) as caught:
        opened(**skipping(folders, "# reviewed\n\ntrain/a/nothing.png"))
    assert caught.value.problems[0].where == f"{folders}/skip.txt:3"


def test_a_missing_skip_list_is_refused(folders):
    dataset = skipping(folders, "") | {"skip_list": str(folders / "no.txt")}
    assert "cannot read `dataset.skip_list`" in refused(DataError, **dataset)


def test_odd_names_are_skipped_as_they_are_and_as_they_are_printed(tmp_path):
    tree(tmp_path / "data", {"a": 4, "b": 4})
    os.rename(tmp_path / "data/a/0.png", os.path.join(os.fsencode(tmp_path), b"data/a/\xff.png"))
    os.rename(tmp_path / "data/a/1.png", tmp_path / "data/a/x\ny.png")
    source = opened(**skipping(tmp_path, os.fsdecode(b"a/\xff.png") + "\na/x\\ny.png", val_fraction=0.4))
    assert sum(source.counts()["train"].values()) + len(source.val) == 6


def test_a_name_that_two_images_share_when_printed_is_refused(tmp_path):
    tree(tmp_path / "data", {"a": 4, "b": 4})
    os.rename(tmp_path / "data/a/0.png", tmp_path / "data/a/x\\ny.png")
    os.rename(tmp_path / "data/a/1.png", tmp_path / "data/a/x\ny.png")
    assert "as well as another image's name" in refused(
        DataError, **skipping(tmp_path, "a/x\\ny.png", val_fraction=0.4)
    )


def test_a_written_list_names_what_looks_like_a_comment(tmp_path):
    tree(tmp_path / "data", {" #a": 4, "b": 4})
    source = opened(**skipping(tmp_path, written([(" #a/0.png", "cut")]), val_fraction=0.4))
    assert sum(source.counts()["train"].values()) + len(source.val) == 7


def test_both_spellings_of_a_name_may_be_listed(tmp_path):
    tree(tmp_path / "data", {"a": 4, "b": 4})
    source = opened(**skipping(tmp_path, "./a/0.png\n a/0.png", val_fraction=0.4))
    assert sum(source.counts()["train"].values()) + len(source.val) == 7


def test_rows_of_a_manifest_are_skipped_by_their_path(tmp_path):
    tree(tmp_path, {"i": 5})
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"i/{i}.png,{i % 2}\n" for i in range(5)))
    (tmp_path / "skip.txt").write_text("i/4.png\n")
    dataset = {"name": "csv", "manifest": str(tmp_path / "list.csv"), "skip_list": str(tmp_path / "skip.txt")}
    assert opened(**dataset, val_fraction=0.5).counts()["train"] == {"0": 1, "1": 1}


def test_rows_are_in_the_same_order_however_their_paths_are_written(tmp_path):
    tree(tmp_path, {"i": 6})
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"i/{i}.png,{i % 2}\n" for i in range(6)))
    absolute = (f"{tmp_path}/" * (i > 3) + f"i/{i}.png,{i % 2}\n" for i in range(6))
    (tmp_path / "other.csv").write_text("path,label\n" + "".join(absolute))
    one, other = (
        opened(name="csv", manifest=str(tmp_path / name), val_fraction=0.5) for name in ("list.csv", "other.csv")
    )
    assert fingerprint(one) == fingerprint(other)
    assert [one.train.path(i) for i in range(2)] == [other.train.path(i) for i in range(2)]


def test_digits_have_no_skip_list():
    assert "does not take 'skip_list'" in refused(ConfigError, name="digits", skip_list="a.txt")


def test_members_of_shards_are_skipped_by_their_name_or_path(tmp_path, monkeypatch):
    pytest.importorskip("webdataset")
    monkeypatch.setenv("LRTRAIN_CACHE", str(tmp_path / "cache"))
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            for i in range(6):
                image(tmp_path / "members" / f"{i}.png", value=i)
                write(tmp_path / "members" / f"{i}.cls", str(i % 2).encode())
                for suffix in ("png", "cls"):
                    tar.add(tmp_path / "members" / f"{i}.{suffix}", f"{i}.{suffix}")
    (tmp_path / "skip.txt").write_text(f"train.tar:1.png\n{tmp_path}/val.tar:0.png\n")
    shards = {"name": "webdataset", "train": str(tmp_path / "train.tar"), "val": str(tmp_path / "val.tar")}
    source = opened(**shards, skip_list=str(tmp_path / "skip.txt"))
    assert source.counts() == {"train": {"0": 3, "1": 2}, "val": {"0": 2, "1": 3}}
    assert [int(source.train.read(i)[0, 0, 0]) for i in range(5)] == [0, 2, 3, 4, 5]
    assert [int(source.val.read(i)[0, 0, 0]) for i in range(5)] == [1, 2, 3, 4, 5]


def test_a_members_name_that_is_another_path_to_one_is_its_own(tmp_path):
    names = ["#s.tar:a//b.png", "#s.tar:a/b.png", "#s.tar:e/../a/b.png"]
    (tmp_path / "skip.txt").write_text(written([(names[0], "cut"), (names[2], "cut")]))
    chosen, problems = named(str(tmp_path / "skip.txt"), names, names.__getitem__)
    assert (chosen.tolist(), problems) == ([True, False, True], [])
