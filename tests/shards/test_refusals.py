"""Everything that can be wrong with shards is found before training."""

from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path

import pytest

from lrtrain import lookup
from lrtrain.errors import ConfigError, DataError, EnvironmentFault
from tests.shards.making import cut, flip, opened, png, refused, samples, shard

pytest.importorskip("webdataset")


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
        (lambda path: os.truncate(path, 2**42), "cannot read the shard .*it is a sparse file"),
    ],
    ids=range(14),
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


def test_a_shard_of_very_many_global_fields_is_refused(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w", pax_headers={f"k{i}": "v" for i in range(101)}) as tar:
        tar.addfile(tarfile.TarInfo("0.cls"))
    assert "has 101 fields for all of its members" in refused(DataError, train=str(tmp_path / "t.tar"))


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


def test_a_skip_list_tells_shards_of_one_name_apart(tmp_path):
    for folder in ("train", "val"):
        shard(tmp_path / folder / "000.tar", samples("a", "b", "a", "b"))
    here = {"train": str(tmp_path / "train" / "000.tar"), "val": str(tmp_path / "val" / "000.tar")}
    skip = tmp_path / "skip.txt"
    skip.write_text("train/000.tar:0003.png\n")
    source = opened(**here, skip_list=str(skip))
    assert [len(source.train), len(source.val)] == [3, 4]
    skip.write_text("000.tar:0003.png\n")
    words = refused(DataError, **here, skip_list=str(skip))
    assert "names '000.tar:0003.png', which is not in the dataset" in words
    assert "did you mean 'train/000.tar:0003.png'?" in words
