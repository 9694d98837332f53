"""Shards give what the files in them would, and everything that can be wrong with shards is found before training."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lrtrain import lookup
from lrtrain.config.schema import Dataset
from lrtrain.data import shard_index
from lrtrain.data.batches import Batches
from lrtrain.data.build import make_pipeline
from lrtrain.data.decode import decode
from lrtrain.data.open import open_source
from lrtrain.data.shards import Texts
from lrtrain.data.sources.webdataset import absolute
from lrtrain.errors import ConfigError, DataError, EnvironmentFault, LrtrainError
from tests import forked

webdataset = pytest.importorskip("webdataset")

REPOSITORY = Path(__file__).parents[1]
TRANSFORMS = {
    "train": [{"name": "RandomCrop", "size": 12, "padding": 2}, {"name": "ColorJitter", "brightness": 0.5}],
}


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """The folder of the indexes."""
    monkeypatch.setenv("LRTRAIN_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept" / "shards"


def where(*loc):
    return "cfg.yaml " + ".".join(map(str, loc))


def opened(seed=1, **dataset):
    return open_source(Dataset(name="webdataset", **dataset), seed, where)


def refused(kind, **dataset):
    """The problems that opening shards reports, as one text."""
    with pytest.raises(LrtrainError) as caught:
        opened(**{"val_fraction": None if "val" in dataset else 0.5, **dataset})
    assert type(caught.value) is kind
    assert all(problem.where for problem in caught.value.problems)
    return "\n".join(f"{problem.what} | {problem.hint}" for problem in caught.value.problems)


def png(value=0, size=(8, 8)):
    content = io.BytesIO()
    Image.new("RGB", size, value).save(content, "PNG")
    return content.getvalue()


def shard(path, members):
    """A tar file of (name, content) in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            content = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def samples(*labels, start=0):
    """Members of a sample a label."""
    for i, label in enumerate(labels, start):
        yield f"{i:04}.png", png(i)
        yield f"{i:04}.cls", str(label)


@pytest.fixture
def two(tmp_path):
    """A shard to train on and one to evaluate on, of two classes."""
    train = shard(tmp_path / "train.tar", samples(0, 1, 0, 1))
    return {"train": str(train), "val": str(shard(tmp_path / "val.tar", samples(1, 0)))}


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
    assert folders.image_size == shards.image_size == 16


def test_the_size_is_found_where_a_header_is_longer_than_what_is_read_first(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    content = io.BytesIO()
    Image.new("RGB", (9, 9)).save(content, "JPEG", exif=exif.tobytes(), comment=b"x" * 60_000)
    members = [
        (f"{i}.{suffix}", part) for i in range(4) for suffix, part in (("jpg", content.getvalue()), ("cls", str(i % 2)))
    ]
    assert opened(train=str(shard(tmp_path / "a.tar", members)), val_fraction=0.5).image_size == 9


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
    folder = tmp_path / "a[1]{x}"
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


# the index


def forbid_scans(monkeypatch):
    monkeypatch.setattr(shard_index, "scanned", None)


def test_the_second_opening_reads_no_tar_file(two, monkeypatch):
    first = opened(**two)
    with monkeypatch.context() as patch:
        forbid_scans(patch)
        second = opened(**two)
    assert second.counts() == first.counts()
    assert [second.train.path(i) for i in range(4)] == [first.train.path(i) for i in range(4)]
    assert all(torch.equal(first.train.read(i), second.train.read(i)) for i in range(4))


def test_a_shard_that_changed_is_indexed_again_and_the_others_are_not(two, monkeypatch):
    opened(**two)
    shard(Path(two["val"]), samples(0, 1, 0))
    asked = []
    scan = shard_index.scanned
    monkeypatch.setattr(shard_index, "scanned", lambda path, bar: asked.append(path) or scan(path, bar))
    assert len(opened(**two).val) == 3
    assert asked == [two["val"]]


def test_a_damaged_index_is_made_again(two, kept):
    expected = opened(**two).counts()
    for i, file in enumerate(sorted(kept.glob("*.npz"))):
        content = bytearray(file.read_bytes())
        file.write_bytes(content[:100] if i else bytes(b ^ 1 for b in content))
    assert opened(**two).counts() == expected
    for file in kept.glob("*.npz"):
        file.write_bytes(b"")
    assert opened(**two).counts() == expected


def test_an_index_with_a_pickle_in_it_is_not_opened_but_made_again(two, kept):
    expected = opened(**two).counts()
    for file in kept.glob("*.npz"):
        np.savez(file, stat=np.array([{}], dtype=object))
    assert opened(**two).counts() == expected


def test_an_index_of_another_file_is_made_again(two, kept):
    expected = opened(**two).counts()
    train, val = (shard_index.index_file(two[split]) for split in ("train", "val"))
    train.write_bytes(val.read_bytes())
    os.utime(two["val"], ns=(1, 1))
    assert opened(**two).counts() == expected


def test_an_index_that_cannot_be_kept_is_noted(two, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LRTRAIN_CACHE", str(tmp_path / "file"))
    (note,) = opened(**two).notes
    assert f"is made anew at every start, since {tmp_path}/file/shards cannot be written" in note


def test_a_shard_that_changes_while_it_is_used_is_found_out(two):
    source = opened(**two)
    source.train.read(0)
    stamp = source.train.stamp(0)
    assert stamp != source.train.stamp(1)
    with open(two["train"], "r+b") as file:
        file.write(b"x")
    os.utime(two["train"], ns=(1, 1))
    for use in (source.train.read, source.train.stamp):
        with pytest.raises(DataError, match="changed after it was indexed"):
            use(0)
    os.remove(two["val"])
    for use in (source.val.read, source.val.stamp):
        with pytest.raises(DataError, match="cannot read the shard"):
            use(0)


OPEN = """
import sys, time
from lrtrain.config.schema import Dataset
from lrtrain.data import shard_index
from lrtrain.data.open import open_source
scan = shard_index.scanned
def scanned(path, bar):
    print("scans", flush=True)
    time.sleep(float(sys.argv[3]))
    return scan(path, bar)
shard_index.scanned = scanned
source = open_source(Dataset(name="webdataset", train=sys.argv[1], val=sys.argv[2]), 1, lambda *loc: "here")
print(len(source.train), len(source.val), flush=True)
"""


def opening(two, seconds):
    command = [sys.executable, "-c", OPEN, two["train"], two["val"], str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)


def test_one_process_indexes_while_others_wait(two):
    both = [opening(two, 1) for _ in range(2)]
    texts = [process.communicate(timeout=100)[0] for process in both]
    assert sum(text.count("scans") for text in texts) == 2  # each shard once
    assert all(text.endswith("4 2\n") for text in texts)


def test_an_indexing_that_was_killed_leaves_nothing_in_the_way(two, kept):
    process = opening(two, 60)
    assert process.stdout.readline() == "scans\n"
    (kept / "abandoned.partial").write_bytes(b"x")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(opened(**two).train) == 4
    assert not list(kept.glob("*.partial"))


# what is refused


def test_every_problem_of_the_shards_is_reported_at_once(tmp_path):
    (tmp_path / "classes.txt").write_text("a\nb\n")
    bad = [
        ("0.png", png()),
        ("1.cls", "0"),
        ("2.png", png()),
        ("2.jpg", png()),
        ("2.cls", "0"),
        ("3.png", png()),
        ("3.PNG", png()),
        ("3.cls", "0"),
        ("4.png", png()),
        ("4.cls", ""),
        ("5.png", png()),
        ("5.json", "{"),
        ("6.png", png()),
        ("6.json", "[1]"),
        ("7.png", png()),
        ("7.json", '{"label": true}'),
        ("8.png", png()),
        ("8.json", '{"label": 1, "cls": 0}'),
        ("9.001.png", png()),
        ("1.png", png()),
    ]
    shard(tmp_path / "t-0.tar", bad)
    shard(tmp_path / "t-1.tar", samples(0, "c", 2, "c"))
    text = refused(DataError, train=str(tmp_path / "t-{0..1}.tar"), classes=str(tmp_path / "classes.txt"))
    for expected in (
        f"sample '0' in {tmp_path}/t-0.tar has no label",
        "t-0.tar has no image; its members end in .cls",
        "has 2 images; its members end in .png, .jpg, .cls",
        "t-0.tar:3.PNG is the second of that kind in its sample",
        ".cls must hold a number or a name, not ''",
        ".json cannot be read: Expecting property name",
        "it has no field `label` or `cls`",
        "the label must be an integer or a text, not True",
        "`label` 1 and `cls` 0 contradict each other",
        "its members end in .001.png | a key ends at the first dot",
        "sample '1' in",
        "is there twice, or its members do not follow each other",
        f"label 'c' is in train but not in the class names: {tmp_path}/t-1.tar:0001.png and 1 more",
        "label '2' is in train but not in the class names",
    ):
        assert expected in text


def test_twenty_problems_are_shown(tmp_path):
    train = shard(tmp_path / "t.tar", [(f"{i}.png", b"x") for i in range(50)])
    assert refused(DataError, train=str(train)).endswith("and 30 more of this kind | None")


def cut(path, size):
    os.truncate(path, size)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


# Blocks of 512 bytes: header, image, header, label, and so on; then zeros up to 10240.
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda path: cut(path, 700), "cannot read the shard .*unexpected end of data"),
        (lambda path: cut(path, 1024), "is cut off at byte 1,024"),
        (lambda path: cut(path, 1200), "is cut off at byte 1,024"),
        (lambda path: cut(path, 8 * 512), "is cut off at byte 4,096"),
        (lambda path: cut(path, 0), "empty file"),
        (lambda path: flip(path, 1024), "is damaged at byte 1,024"),
        (lambda path: flip(path, 3), "cannot read the shard .*: (bad checksum|invalid header)"),
        (lambda path: path.write_bytes(path.read_bytes() * 2), "goes on after the mark of its end"),
        (
            lambda path: path.write_bytes(gzip.compress(path.read_bytes())),
            "is compressed .gzip., and cannot be read at",
        ),
        (lambda path: path.write_bytes(b"BZh91AY"), "is compressed .bzip2."),
        (lambda path: path.write_bytes(b"hello" * 1000), "cannot read the shard"),
        (lambda path: path.write_bytes(bytes(10240)), "has no samples"),
        (lambda path: shard(path, [("a/README", "x")]), "has no samples"),
    ],
    ids=range(13),
)
def test_a_tar_file_that_is_not_whole_is_refused_every_time(two, kept, change, what):
    path = Path(two["val"])
    change(path)
    for _ in range(2):
        with pytest.raises(DataError, match=what) as caught:
            opened(**two)
        assert str(path) in str(caught.value)


def test_links_in_a_shard_are_refused(tmp_path):
    path = shard(tmp_path / "t.tar", samples(0, 1))
    with tarfile.open(path, "a") as tar:
        for kind, name in ((tarfile.LNKTYPE, "8.png"), (tarfile.SYMTYPE, "9.png")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "0000.png"
            tar.addfile(link)
    text = refused(DataError, train=str(path))
    assert f"{path}:8.png is a link" in text
    assert f"{path}:9.png is a link" in text


def test_a_class_of_val_that_train_lacks_is_refused(tmp_path):
    dataset = {"train": str(shard(tmp_path / "t.tar", samples("a", "b")))}
    dataset["val"] = str(shard(tmp_path / "v.tar", samples("a", "c")))
    assert f"label 'c' is in val but not in train: {tmp_path}/v.tar:0001.png | add" in refused(DataError, **dataset)
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    text = refused(DataError, **dataset, classes=str(tmp_path / "classes.txt"))
    assert "label 'c' is in val but not in train" in text


@pytest.mark.parametrize(
    ("labels", "what"),
    [((3, 3), "two classes or more; train has 3"), ((3, "cat"), "labels of train are numbers and names: 3 and 'cat'")],
)
def test_labels_that_make_no_classes_are_refused(tmp_path, labels, what):
    assert what in refused(DataError, train=str(shard(tmp_path / "t.tar", samples(*labels))))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("a\n\nb", "a class needs a name; the line is empty"),
        ("a\nb\na", "class 'a' is listed twice, first on line 1"),
        ("1\n0", "class '1' would be number 0"),
        ("a", "must be two classes or more"),
        (None, "cannot read the class names"),
        (b"\xff\xfe", "cannot read the class names"),
    ],
)
def test_a_class_file_that_is_none_is_refused(two, tmp_path, content, what):
    if content is not None:
        (tmp_path / "c.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert what in refused(DataError, **two, classes=str(tmp_path / "c.txt"))


@pytest.mark.parametrize(
    "url", ["pipe:touch x", "https://x.org/{0..3}.tar", "s3://b/0.tar", "file:0.tar", "0.tar::http://x/1.tar"]
)
def test_what_is_no_local_file_is_refused_and_nothing_is_run(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    assert "is not | download the shards, or mount where they are" in refused(ConfigError, train=url)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [3, [], [3], "", ["a.tar", ""], {"a": 1}])
def test_patterns_must_be_texts(value):
    assert "train must name tar files" in refused(ConfigError, train=value)


@pytest.mark.parametrize(
    ("pattern", "what"), [("a-{0..3.tar", "cannot expand"), ("${NO}/a.tar", "missing environment")]
)
def test_patterns_that_cannot_be_expanded_are_refused(pattern, what):
    assert what in refused(ConfigError, train=pattern)


def test_shards_that_are_missing_are_all_named(tmp_path):
    shard(tmp_path / "t-1.tar", samples(0, 1))
    (tmp_path / "t-2.tar").mkdir()
    text = refused(DataError, train=str(tmp_path / "t-{0..3}.tar"), val=[str(tmp_path / "x-*.tar")])
    assert f"'{tmp_path}/t-0.tar' does not exist" in text
    assert f"'{tmp_path}/t-2.tar' is no regular file" in text
    assert f"'{tmp_path}/t-3.tar' does not exist" in text
    assert f"no file matches '{tmp_path}/x-*.tar'" in text
    assert f"{tmp_path}/t-1.tar" not in text


def test_a_shard_that_is_there_twice_is_refused(tmp_path, two):
    (tmp_path / "link.tar").symlink_to(two["train"])
    text = refused(DataError, train=[two["train"], two["train"]], val=str(tmp_path / "link.tar"))
    assert f"{two['train']} is twice in train" in text
    assert "link.tar is in train and in val" in text


def test_what_is_evaluated_must_be_clear(two):
    assert "nothing to evaluate on" in refused(ConfigError, train=two["train"], val_fraction=None)
    assert "val_fraction 0.1 contradicts val" in refused(ConfigError, **two, val_fraction=0.1)
    assert "webdataset needs train" in refused(ConfigError, val=two["val"])


def test_without_the_package_the_extra_is_named(two, monkeypatch):
    monkeypatch.setattr(
        lookup.importlib.util,
        "find_spec",
        lambda name, _=lookup.importlib.util.find_spec: None if name == "webdataset" else _(name),
    )
    text = refused(EnvironmentFault, **two)
    assert text == "dataset 'webdataset' needs the package webdataset | pip install 'lrtrain[webdataset]'"
    assert lookup.why_unknown("dataset", "digits") is None


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


def _header(name, size, kind=b"0"):
    """A header of ustar whose size may be anything."""
    field = b"%011o\0" % size if 0 <= size < 8**11 else b"\xff" + (size % 2**88).to_bytes(11, "big")
    made = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + field + b"%011o\0" % 0 + b" " * 8 + kind
    made = (made + bytes(100) + b"ustar\x0000").ljust(512, b"\0")
    return made[:148] + b"%06o\0 " % sum(made) + made[156:]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (_header(b"b.jpg", -512), "a size below 0"),
        (_header(b"b.jpg", -1024), "a size below 0"),
        (_header(b"././@LongLink", 1_500_000_000, b"L"), "a header of the shard has 1,500,000,000 bytes"),
        (_header(b"x", 1_500_000_000, b"x"), "a header of the shard has 1,500,000,000 bytes"),
    ],
)
def test_a_header_that_leads_astray_is_refused(tmp_path, header, words):
    (tmp_path / "t.tar").write_bytes(_header(b"a.jpg", 0) + header + bytes(4096))
    assert words in refused(DataError, train=str(tmp_path / "t.tar"))


@pytest.mark.parametrize(
    ("pattern", "kind", "words"),
    [
        ("{" * 3000 + "a,b" + "}" * 3000, ConfigError, "cannot expand"),
        ("x-{0..999999}.tar", DataError, "does not exist"),
    ],
)
def test_patterns_without_end_have_one(pattern, kind, words):
    assert words in refused(kind, train=pattern)
