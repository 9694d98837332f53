"""Inputs that would hang, take all memory or end in a riddle: each is refused, quickly and in words."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from glob import glob
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from lrtrain.data.classes import unfit
from lrtrain.data.decode import header
from lrtrain.data.sources import webdataset
from tests.folders import tree
from tests.hostile import Typed, assert_clear

CONFIG = """steps: 2
batch_size: 4
model: {name: small_cnn, width: 4}
dataset: {name: imagefolder, root: data, val_fraction: 0.5}
optimizer: {name: SGD, lr: 0.05}
precision: fp32
workers: 0
"""
Make = Callable[[Path], object]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Typed:
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "data", {"a": 4, "b": 4})
    (tmp_path / "c.yaml").write_text(CONFIG)
    return Typed(monkeypatch, capfd)


def class_of(name: bytes) -> Make:
    def make(folder: Path) -> None:
        inside = os.path.join(os.fsencode(folder / "data"), name)
        os.mkdir(inside)
        Image.new("RGB", (8, 8)).save(os.path.join(inside, b"1.png"))
        Image.new("RGB", (8, 8), 9).save(os.path.join(inside, b"2.png"))

    return make


def narrow(folder: Path) -> None:
    for name in ("0", "1"):
        Image.new("RGB", (100_000, 1)).save(folder / "data" / "a" / f"{name}.png")


def linked_often(folder: Path) -> None:
    """Twenty folders, each with two links to the next: a million ways to the last."""
    folders = [folder / "data" / "a", *(folder / f"inner{i}" for i in range(20))]
    for above, below in itertools.pairwise(folders):
        below.mkdir()
        (above / "x").symlink_to(below)
        (above / "y").symlink_to(below)
    Image.new("RGB", (8, 8)).save(folders[-1] / "1.png")


def manifest(make: Make) -> Make:
    return lambda folder: make(folder / "m.csv")


CSV = ["--set", "dataset.name=csv", "--set", "dataset.manifest=m.csv"]
SHARDS = ["--set", "dataset={name: webdataset, val_fraction: 0.5, train: '%s'}"]
LONG = "x" * 300
TRANSFORMS = "dataset.transforms={{train: [{{name: {name}, {how}}}], val: [{{name: Resize, size: [8, 8]}}]}}"
# what is wrong, how it comes about, further arguments, the exit code, words of the error
CASES: list[tuple[str, Make, list[str], int, tuple[str, ...]]] = [
    ("a class that is not UTF-8", class_of(b"\xffants"), [], 3, ("is not UTF-8", "rename the folder")),
    ("a label without end", manifest(lambda p: p.write_text(f"path,label\na/0.png,a\nb/0.png,{'b' * 2000}\na/1.png,a\nb/1.png,{'b' * 2000}\n")),
     [*CSV, "--set", "dataset.root=data"], 3, ("at most 1,000 characters",)),
    ("a manifest that is a pipe", manifest(os.mkfifo), CSV, 3, ("m.csv", "no regular file")),
    ("a manifest without end", manifest(lambda p: p.symlink_to("/dev/zero")), CSV, 3, ("m.csv", "no regular file")),
    ("a skip list that is a pipe", lambda p: os.mkfifo(p / "s.txt"), ["--set", "dataset.skip_list=s.txt"], 3, ("s.txt", "no regular file")),
    ("a skip list without end", lambda p: (p / "s.txt").symlink_to("/dev/zero"), ["--set", "dataset.skip_list=s.txt"], 3, ("s.txt",)),
    ("folders linked in a million ways", linked_often, [], 3, ("is the same folder as", "remove the link")),
    ("an image that a Resize makes huge", narrow,
     ["--set", "dataset.transforms={train: [{name: Resize, size: 224}, {name: CenterCrop, size: 32}], val: [{name: Resize, size: 224}, {name: CenterCrop, size: 32}]}"],
     3, ("Resize would make 224 x 22,400,000 pixels, more than 61,000,000", "data/a/", "leave the image out")),
    *((f"a {name} to {how}", lambda p: None, ["--set", TRANSFORMS.format(name=name, how=how)],
       code, (f"{name} would make", "pixels, more than"))
      for name, how, code in (("CenterCrop", "size: 100000", 2), ("RandomCrop", "size: 100000", 2), ("Resize", "size: [99999, 9999]", 2),
                              ("RandomResizedCrop", "size: 20000", 2), ("Pad", "padding: 100000", 2), ("Pad", "padding: [1, 100000, 9000, 2]", 2))),
    *((f"a home of nobody as {key}", lambda p: None, ["--set", f"{key}=~nobody-such/x", *more], 2, ("is no path", "~/ for your own"))
      for key, more in (("dataset.root", []), ("dataset.skip_list", []), ("dataset.manifest", CSV[:2]))),
    *((f"a name of 300 characters as {key}", lambda p: None, ["--set", f"{key}={LONG}{end}", *more], 2, ("File name too long",))
      for key, end, more in (("dataset.root", "", []), ("dataset.skip_list", "", []), ("dataset.manifest", "", CSV[:2]))),
    *((f"{key} {value}", lambda p: None, ["--set", f"{key}={value}"], 2, (key, value))
      for key in ("mixup", "cutmix") for value in ("1e-320", "1e300")),
]  # fmt: skip


@pytest.mark.parametrize(("make", "more", "code", "words"), [row[1:] for row in CASES], ids=[row[0] for row in CASES])
@pytest.mark.parametrize("command", ["fit", "preview"])
def test_it_is_refused_in_time(
    typed: Typed, tmp_path: Path, command: str, make: Make, more: list[str], code: int, words: tuple[str, ...]
) -> None:
    make(tmp_path)
    if command == "preview" and "transforms" in " ".join(more):
        return  # it looks at no pixels
    ended = typed(command, "c.yaml", *more)
    assert_clear(ended, code, *(word for word in words if word != "c.yaml"))


@pytest.mark.parametrize("command", ["evaluate", "verify", "check", "fit"])
def test_a_name_that_no_file_can_have_is_no_bug(typed: Typed, command: str) -> None:
    ended = typed(command, LONG)
    assert ended.code in (2, 3, 4, 5), ended.err
    assert "bug" not in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--start", "1e-320", "--steps", "20"], "rises by more than a float can hold"),
        (["--out", "rt", "--json", "rt/range-test.png"], "--json would write over range-test.png in --out"),
    ],
)
def test_a_range_test_that_cannot_end_well_is_not_begun(
    typed: Typed, tmp_path: Path, more: list[str], words: str
) -> None:
    (tmp_path / "rt").mkdir()
    assert_clear(typed("range-test", "c.yaml", *more), 2, words)


def test_a_chain_that_takes_hours_to_plan_is_refused(typed: Typed) -> None:
    chain = "{name: ChainedScheduler, every: step, schedulers: [{name: ExponentialLR, gamma: 0.9}, {name: ExponentialLR, gamma: 0.9}]}"  # fmt: skip
    ended = typed("preview", "c.yaml", "--set", "steps=15000000", "--set", f"schedule={chain}")
    assert_clear(ended, 2, "of 2 schedulers would be asked 30,000,000 times; at most 20,000,000 are planned")


def test_a_plan_of_many_steps_of_many_groups_is_refused(typed: Typed) -> None:
    more = ("steps=20000000", "model={name: resnet18}", "optimizer.layer_decay=0.9")
    ended = typed("preview", "c.yaml", *(part for value in more for part in ("--set", value)))
    assert_clear(ended, 2, "LRs, of ", "groups; at most 100,000,000 are planned", "no layer_decay")


def test_a_group_has_no_argument_before_its_value_is_wrong(typed: Typed) -> None:
    ended = typed("preview", "c.yaml", "--set", "optimizer.groups=[{params: conv, betas: 3}]")
    assert_clear(ended, 2, "SGD has no argument 'betas'")
    assert "at least 0" not in ended.err


def test_a_model_that_fails_for_its_arguments_is_not_laid_to_the_images(typed: Typed) -> None:
    pytest.importorskip("timm")
    ended = typed("fit", "c.yaml", "--set", "model={name: timm/resnet18, drop_rate: x}")
    assert_clear(ended, 2, "fails when it is given images", "drop_rate")
    assert "larger" not in ended.err


@pytest.mark.parametrize("braces", ["{000000..999999999}", "{a..z}{0..99999}", "{1..9}{1..9}{1..9}{1..9}{1..9}{1..9}{1..9}", "{0..9999999999999999999}"])  # fmt: skip
def test_shards_without_end_are_refused_before_they_are_counted_up(typed: Typed, braces: str) -> None:
    pytest.importorskip("webdataset")
    assert_clear(
        typed("fit", "c.yaml", SHARDS[0], SHARDS[1] % f"s-{braces}.tar"), 2, "at most 1,000,000 are looked for"
    )


def test_a_pattern_that_leads_through_a_whole_disk_is_refused(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("webdataset")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "again").symlink_to("/proc/self/root")
    monkeypatch.setattr(webdataset, "MOST_SHARDS", 20_000)
    for pattern in ("deep/**/*.tar", "/proc/**/*.tar", "/*/*/*/*/*/*"):
        assert_clear(typed("fit", "c.yaml", SHARDS[0], SHARDS[1] % pattern), 2, "at most 20,000 are looked at")


def test_patterns_find_what_glob_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/b/c.tar", "a/d.tar", "a/.h/e.tar", ".x.tar", "z.tar", "a/b/q.txt", "k/m/n/o.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name, to in (("linked", "k"), ("nothing.tar", "nothing"), ("loop", "loop")):
        (tmp_path / name).symlink_to(to)
    patterns = "**/*.tar a/**/*.tar **/m/**/o.* */*.tar .* a/.*/* k/**/o.tar [az]* a** a/*/** */../z.tar k//*/n/*"
    for pattern in patterns.split():
        for where in (pattern, f"{tmp_path}/{pattern}"):
            found = {os.path.normpath(path) for path in webdataset._globbed(where, itertools.count(1))}
            assert found == {os.path.normpath(path) for path in glob(where, recursive=True)}, where


def test_more_names_than_a_checkpoint_can_hold_are_refused() -> None:
    assert not unfit([f"n{i:08}" for i in range(21_841)])
    assert "take 3,036,000 bytes; at most 3,000,000" in unfit([f"{i:0500}" for i in range(6_000)])[0].what
    assert "there are 30,001 classes, and at most 30,000" in unfit([str(i) for i in range(30_001)])[0].what


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("a" * 60_000, "in at most 10,000 characters"),
        ("{a,b}" * 19 + ".tar", "stands for up to 524,288 shards by 19 braces each"),
        ("{a,b}" * 17 + ".tar", "stands for up to 131,072 shards by 17 braces each"),
        ("a" * 10_000, "the shard"),
    ],
)
def test_a_pattern_that_takes_long_to_read_is_not_read(typed: Typed, pattern: str, words: str) -> None:
    pytest.importorskip("webdataset")
    ended = typed("fit", "c.yaml", SHARDS[0], SHARDS[1] % pattern)
    assert ended.code in (2, 3), ended.err
    assert "bug" not in ended.err
    assert words in ended.err


def test_ranges_in_a_pattern_are_found_where_they_begin() -> None:
    from lrtrain.data.sources.webdataset import _at_most

    found = [_at_most(p) for p in ("{0..9}", "{-3..5}", "a-{00..09}x{a..c}", "x-{-1..1}", "a..b{1..2}", "{0..9}{0..9}")]
    assert found == [10, 9, 30, 3, 4, 100]
    assert _at_most("a" * 10_000) == 1


def test_a_jpeg_of_zeros_is_not_looked_through_byte_by_byte(typed: Typed, tmp_path: Path) -> None:
    """And check, fit and a header in a shard say the same of it."""
    junk = b"\xff\xd8\xff\xe0\0\x10JFIF\0" + b"\0" * 40_000_000
    (tmp_path / "data" / "a" / "0.jpg").write_bytes(junk)
    words = "it is made of more than 200,000 pieces"
    for command in ("check", "fit"):
        ended = typed(command, "c.yaml")
        assert ended.code == 3, ended.err
        assert words in " ".join((ended.out + ended.err).split())
    with pytest.raises(ValueError, match=words):
        header(BytesIO(junk))
