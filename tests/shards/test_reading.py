"""Shards give what the files in them would, from `fit` too."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lrtrain.config.schema import Dataset
from lrtrain.data import shards
from lrtrain.data.batches import Batches
from lrtrain.data.build import make_pipeline
from lrtrain.data.decode import decode
from lrtrain.data.files import FileSplit
from lrtrain.data.open import open_source
from lrtrain.data.shards import Texts
from lrtrain.data.sources.webdataset import absolute
from lrtrain.errors import DataError
from tests import forked
from tests.pngs import chunk
from tests.shards.making import REPOSITORY, cut, opened, png, samples, shard, where

webdataset = pytest.importorskip("webdataset")


TRANSFORMS = {
    "train": [{"name": "RandomCrop", "size": 12, "padding": 2}, {"name": "ColorJitter", "brightness": 0.5}],
}


# what is read


@pytest.fixture
def both(tmp_path):
    """26 images in folders, and the same in shards of 5, as imagefolder orders them."""
    root, rng = tmp_path / "images", np.random.default_rng(1)
    for split, n in (("train", 13), ("val", 5)):
        for label in "ab":
            (root / split / label).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.{'png' if i % 2 else 'jpg'}")
    folders = Dataset(name="imagefolder", root=str(root), transforms=TRANSFORMS)
    for split in ("train", "val"):
        files = getattr(open_source(folders, 1, where), split)
        for first in range(0, len(files), 5):
            with webdataset.TarWriter(str(tmp_path / f"{split}-{first // 5:03}.tar")) as out:
                for i in range(first, min(first + 5, len(files))):
                    file = Path(files.path(i))
                    out.write({"__key__": f"{i:05}", file.suffix[1:]: file.read_bytes(), "cls": int(files.labels[i])})
    shards = Dataset(
        name="webdataset",
        train=str(tmp_path / "train-{000..005}.tar"),
        val=str(tmp_path / "val-*.tar"),
        transforms=TRANSFORMS,
    )
    return folders, shards


def batches(dataset, **options):
    made = make_pipeline(open_source(dataset, 1, where), dataset, seed=1, where=where)
    return Batches(made, batch_size=8, where=where, **options)


def same(one, two):
    return torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels)


@pytest.mark.parametrize("cache", ["off", "memory", "disk"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_files_in_folders_from_any_step(both, workers, cache):
    folders, shards = both
    reference = list(batches(folders, cache="off").train(0, 9))
    made = batches(shards, workers=workers, cache=cache)
    assert made.steps_per_epoch == 4
    middle = list(made.train(3, 9))
    assert len(middle) == 6
    assert all(same(one, two) for one, two in zip(reference[3:], middle, strict=True))
    evaluated = zip(batches(folders).evaluate(), made.evaluate(), strict=True)
    assert all(same(one, two) for one, two in evaluated)


def test_the_images_of_shards_have_the_size_that_their_files_have(both):
    folders, shards = (open_source(dataset, 1, where) for dataset in both)
    assert folders.image_size == shards.image_size == (16, 16)


def test_the_size_is_found_where_a_header_is_longer_than_what_is_read_first(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    content = io.BytesIO()
    Image.new("RGB", (9, 9)).save(content, "JPEG", exif=exif.tobytes(), comment=b"x" * 60_000)
    members = [
        (f"{i}.{suffix}", part) for i in range(4) for suffix, part in (("jpg", content.getvalue()), ("cls", str(i % 2)))
    ]
    assert opened(train=str(shard(tmp_path / "a.tar", members)), val_fraction=0.5).image_size == (9, 9)


@pytest.mark.parametrize("said", ["eXIf", "iTXt"])
def test_a_large_png_that_says_at_its_end_how_it_is_turned_is_measured_as_it_is_read(tmp_path, said):
    pixels = np.random.default_rng(1).integers(0, 256, (200, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content := io.BytesIO(), "PNG")
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<a tiff:Orientation="6"/>'
    exif = Image.Exif()
    exif[0x0112] = 6
    late = chunk(said.encode(), exif.tobytes().removeprefix(b"Exif\0\0") if said == "eXIf" else xmp)
    turned = content.getvalue()[:-12] + late + content.getvalue()[-12:]
    assert len(turned) > 2**16
    members = [(f"{i}.{suffix}", part) for i in range(4) for suffix, part in (("png", turned), ("cls", str(i % 2)))]
    source = opened(train=str(shard(tmp_path / "a.tar", members)), val_fraction=0.5)
    assert source.train.read(0).shape == (3, 160, 200)
    assert source.image_size == (160, 200)


def test_a_split_is_sent_to_workers_without_open_files(two):
    split = opened(**two).train
    read = split.read(2)
    content = pickle.dumps(split)
    assert len(content) < 3000
    assert torch.equal(pickle.loads(content).read(2), read)


def test_a_forked_process_reads_beside_its_parent(two):
    split = opened(**two).train
    expected = [split.read(i) for i in range(4)]
    child = os.fork()
    if child == 0:
        os._exit(0 if all(torch.equal(split.read(i), expected[i]) for _ in range(50) for i in range(4)) else 1)
    assert all(torch.equal(split.read(i), expected[i]) for _ in range(50) for i in range(4))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_more_shards_than_files_may_be_open_are_read(tmp_path, monkeypatch):
    from functools import lru_cache

    from lrtrain.data import shards

    monkeypatch.setattr(shards, "_opened", lru_cache(2)(shards._opened.__wrapped__))
    for i in range(8):
        shard(tmp_path / f"{i}.tar", samples(0, 1, start=2 * i))
    split = opened(train=str(tmp_path / "{0..7}.tar"), val=str(shard(tmp_path / "val.tar", samples(0, 1)))).train
    before = len(os.listdir("/proc/self/fd"))
    assert [int(split.read(i)[0, 0, 0]) for i in range(16)] == list(range(16))
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_errors_name_the_shard_and_the_member(tmp_path):
    members = [*samples(0, 1), ("x/2.jpg", b"hello"), ("x/2.cls", "0"), ("3.jpg", b""), ("3.cls", "1")]
    train = shard(tmp_path / "a.tar", members)
    text = refused_images(train=str(train), val_fraction=0.5)
    assert f"cannot read the image {train}:x/2.jpg: its content is no image format" in text
    assert f"cannot read the image {train}:3.jpg: it is empty (0 bytes)" in text


def refused_images(**dataset):
    with pytest.raises(DataError) as caught:
        _ = opened(**dataset).image_size
    return str(caught.value)


def test_gray_and_rotated_images_are_read_by_the_rule_of_files(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    file = tmp_path / "a.jpg"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5).resize((24, 16)).save(file, exif=exif.tobytes())
    members = [
        (f"{i}.{suffix}", part) for i in range(4) for suffix, part in (("jpg", file.read_bytes()), ("cls", str(i % 2)))
    ]
    source = opened(train=str(shard(tmp_path / "a.tar", members)), val_fraction=0.5, color="gray")
    assert torch.equal(source.train.read(0), decode(file, 1))


# labels and classes


def test_numbers_are_the_classes_in_their_order(tmp_path):
    train = shard(tmp_path / "t.tar", samples(10, "9\n", "009", " 10"))
    source = opened(train=str(train), val_fraction=0.5)
    assert source.classes == ("9", "10")
    assert source.counts()["train"] == {"9": 1, "10": 1}


def test_names_are_the_classes_sorted(tmp_path):
    source = opened(train=str(shard(tmp_path / "t.tar", samples("dog", "cat", "cat", "dog"))), val_fraction=0.5)
    assert source.classes == ("cat", "dog")


def test_a_label_is_a_name_in_the_class_file_or_its_number(tmp_path):
    (tmp_path / "classes.txt").write_bytes("zebra\r\na\u2028nt\nbee\n".encode())
    train = shard(tmp_path / "t.tar", samples(0, 1, 1, "zebra"))
    source = opened(train=str(train), val_fraction=0.5, classes=str(tmp_path / "classes.txt"))
    assert source.classes == ("zebra", "a\u2028nt", "bee")
    assert source.train.whole.labels.tolist() == [0, 1, 1, 0]
    assert source.notes == ("no train images of 1 of 3 classes: bee",)


@pytest.mark.parametrize("data", [{"label": 1}, {"cls": 1}, {"label": "1", "cls": 1, "caption": "x"}])
def test_a_label_may_be_in_json(tmp_path, data):
    members = [*samples(0, 1, 0), ("9.webp", png()), ("9.json", json.dumps(data))]
    assert opened(train=str(shard(tmp_path / "t.tar", members)), val_fraction=0.5).train.whole.labels[3] == 1


def test_a_label_may_begin_with_the_byte_order_mark_that_windows_writes(tmp_path):
    mark = "\ufeff"
    members = [*samples("cat", "dog", f"{mark}cat"), ("9.webp", png()), ("9.json", mark + json.dumps({"label": "dog"}))]
    source = opened(train=str(shard(tmp_path / "t.tar", members)), val_fraction=0.5)
    assert source.classes == ("cat", "dog")
    assert source.train.whole.labels.tolist() == [0, 1, 0, 1]


def test_a_cls_member_goes_before_json_and_other_members_are_left_alone(tmp_path):
    more = [("9.PNG", png()), ("9.json", "no json"), ("9.seg.png", png()), ("9.txt", "x"), ("9.cls", "1")]
    members = [*samples(0, 1, 0), *more, ("__meta__/x.json", "x"), (".hid", "x"), ("x/._9.png", "x"), ("README", "x")]
    source = opened(train=str(shard(tmp_path / "t.tar", members)), val_fraction=0.5)
    assert source.train.whole.labels.tolist() == [0, 1, 0, 1]
    assert source.notes == ("passed over in the shards: 4 hidden files and files without extension",)


def test_without_val_test_is_evaluated_and_with_a_fraction_it_is_held_back(two):
    source = opened(train=two["train"], test=two["val"])
    assert (source.val_from, source.test, len(source.val)) == ("shards of test", None, 2)
    source = opened(train=two["train"], test=two["val"], val_fraction=0.5)
    assert (len(source.train), len(source.val), len(source.test)) == (2, 2, 2)


def test_what_is_held_out_depends_on_the_names_and_not_on_the_folder(tmp_path):
    def held(folder, seed=1):
        shard(folder / "t.tar", samples(*[0, 1] * 20))
        return opened(seed, train=str(folder / "t.tar"), val_fraction=0.25).val.chosen.tolist()

    assert held(tmp_path / "a") == held(tmp_path / "b")
    assert held(tmp_path / "a", 2) != held(tmp_path / "b")


def test_patterns_may_be_a_list_and_start_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for i in range(4):
        shard(tmp_path / f"{i}.tar", samples(i % 2, 1 - i % 2))
    source = opened(train=["~/{2..3}.tar", str(tmp_path / "0.tar")], val="~/[1].tar")
    assert [Path(one.path).stem for one in source.train.shards] == ["2", "3", "0"]


def test_patterns_are_made_to_mean_the_same_from_any_folder(tmp_path, monkeypatch):
    folder = tmp_path / "a[1]{x}b::c:::d"
    shard(folder / "t-0.tar", samples(0, 1))
    shard(folder / "t-1.tar", samples(0, 1))
    monkeypatch.chdir(folder)
    patterns = [absolute("t-{0..1}.tar"), absolute(["t-*.tar"]), absolute("t-0.tar::t-1.tar")]
    monkeypatch.chdir(tmp_path)
    for pattern in patterns:
        assert len(opened(train=pattern, val_fraction=0.5).train.whole.shards) == 2
    assert absolute("~/a.tar") == "~/a.tar"
    assert absolute("/a.tar::/b.tar") == "/a.tar::/b.tar"


def test_texts_come_back_as_they_were():
    texts = ["a", "", "ü/b.jpg", "\udcff.png"]
    assert [*Texts.of(texts)] == texts
    assert len(Texts.of([])) == 0


# through processes

CONFIG = """
seed: 3
epochs: 2
batch_size: 8
workers: 1
cache: off
model: {name: small_cnn, width: 8}
dataset: {name: webdataset, train: "shards/train-{0..2}.tar", val: shards/val.tar, classes: shards/classes.txt}
optimizer: {name: SGD, lr: 0.05, momentum: 0.9}
"""


@pytest.fixture
def project(tmp_path):
    folder, rng = tmp_path / "shards", np.random.default_rng(0)
    for name in ("train-0", "train-1", "train-2", "val"):
        folder.mkdir(exist_ok=True)
        with webdataset.TarWriter(str(folder / f"{name}.tar")) as out:
            for i in range(8):
                pixels = rng.integers(0, 120, (12, 12, 3), dtype=np.uint8)
                pixels[..., i % 2] += 120
                out.write({"__key__": f"{name}/{i}", "png": Image.fromarray(pixels), "json": {"label": i % 2}})
    (folder / "classes.txt").write_text("red\ngreen\n")
    (tmp_path / "c.yaml").write_text(CONFIG)
    return tmp_path


def test_fit_trains_on_shards_and_its_config_repeats_the_run_from_another_folder(lrtrain, project):
    ended = lrtrain("fit", "c.yaml", "--smoke")
    assert ended.code == 0, ended.err
    ended = lrtrain("fit", "c.yaml", "--out", "one")
    assert ended.code == 0, ended.err
    (project / "else").mkdir()
    repeated = forked.run(["fit", "../one/config.yaml", "--out", "two", "--set", "workers=0"], project / "else")
    assert repeated.returncode == 0, repeated.stderr
    one, two = ((project / run / "metrics.jsonl").read_text() for run in ("one", "else/two"))
    assert one == two
    assert json.loads(one.splitlines()[-1])["step"] == 6


def test_a_mistake_is_an_error_with_its_line(lrtrain, project):
    cut(project / "shards" / "train-1.tar", 2000)
    ended = lrtrain("fit", "c.yaml")
    assert ended.code == 3
    assert "train-1.tar" in ended.err
    assert "c.yaml:8" in ended.err


def test_list_shows_it_with_its_arguments(lrtrain):
    ended = lrtrain("list", "datasets", PYTHONPATH=os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    (line,) = [line for line in ended.out.splitlines() if line.startswith("webdataset")]
    assert line.split(None, 1)[1] == "train*, val, test, classes, val_fraction, color, skip_list"
    assert "pip install 'lrtrain[webdataset]'" in ended.out


def test_a_file_that_cannot_be_opened_for_lack_of_descriptors_is_not_called_damaged(two, tmp_path, monkeypatch):
    def none_left(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    source = opened(**two)
    (tmp_path / "0.png").write_bytes(png())
    files = FileSplit(tmp_path, ("0.png",), np.zeros(1, dtype=np.int64), 3)
    with monkeypatch.context() as lacking:
        lacking.setattr("os.open", none_left)
        lacking.setattr("builtins.open", none_left)
        for read in (source.train.read, files.read, files.content):
            with pytest.raises(OSError, match="Too many open files"):
                read(0)


@pytest.mark.parametrize(("allowed", "kept"), [(20, 8), (64, 16), (1024, 256), (2**20, 1024), (-1, 1024)])
def test_a_quarter_of_the_files_that_may_be_open_are_kept_open(allowed, kept, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (allowed, allowed))
    assert runpy.run_path(shards.__file__)["_OPEN"] == kept
