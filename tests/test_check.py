"""`lrtrain check`: everything that is wrong with a dataset, at once, in a real process and to any terminal."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrtrain.commands.start import start_check
from lrtrain.data.sources.imagefolder import unsplit
from lrtrain.data.survey import KINDS, survey
from lrtrain.errors import ConfigError, DataError
from tests.folders import image, opened, tree
from tests.folders import noise as noisy
from tests.hostile import Typed

CONFIG = """epochs: 1
batch_size: 4
model: small_cnn
dataset: {name: imagefolder, root: photos, skip_list: skip.txt}
optimizer: {name: SGD, lr: 0.1}
"""


def pixels(seed, size=(16, 16)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """One image of every kind that is told apart, and three that cannot be read."""
    root = noisy(tmp_path / "photos", {"train": 4, "val": 2})
    a, b = root / "train" / "a", root / "train" / "b"
    for seed, (suffix, mode) in enumerate((("jpg", "CMYK"), ("gif", "P"), ("png", "RGBA"), ("webp", "RGB")), 10):
        pixels(seed).convert(mode).save(a / f"{mode}.{suffix}")
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900).save(a / "16.png")
    pixels(2).save(b / "wrong.jpg", format="PNG")
    Image.new("RGB", (9, 9), "red").save(b / "red.png")
    exif = Image.Exif()
    exif[274] = 6
    pixels(3, (20, 10)).save(b / "turned.png", exif=exif.tobytes())
    pixels(4).save(b / "frames.gif", save_all=True, append_images=[pixels(5)])
    shutil.copy(a / "0.png", a / "copy.png")
    shutil.copy(a / "1.png", b / "conflict.png")
    shutil.copy(a / "2.png", root / "val" / "a" / "leak.png")
    pixels(6).save(tmp_path / "outside.png")
    (a / "link.png").symlink_to(tmp_path / "outside.png")
    (b / "empty.png").write_bytes(b"")
    pixels(7, (200, 200)).save(b / "cut.jpg")
    (b / "cut.jpg").write_bytes((b / "cut.jpg").read_bytes()[:3000])
    for seed, own in ((8, None), (9, exif.tobytes())):
        name = a / f"bits{seed}.jpg"
        pixels(seed, (64, 64)).save(name, **({"exif": own} if own else {}))
        content = bytearray(name.read_bytes())
        content[-600:-500] = bytes(range(100))
        name.write_bytes(content)
    Path(os.fsdecode(os.path.join(os.fsencode(b), b"\xff\x1b[31m\xe2\x80\xae.png"))).write_bytes(b"no image")
    (a / ".hidden").write_bytes(b"x")
    return root


def test_every_kind_is_found_and_named(hostile):
    found = survey(unsplit(hostile), workers=0)
    named = {f.kind: [name for name, _ in f.images] for f in found.findings}
    assert named.pop("unreadable")[:2] == ["train/b/cut.jpg", "train/b/empty.png"]
    assert named == {
        "damaged": ["train/a/bits8.jpg", "train/a/bits9.jpg"],
        "extension": ["train/b/wrong.jpg"],
        "blank": ["train/b/red.png"],
        "link": ["train/a/link.png"],
        "leak": ["val/a/leak.png"],
        "two classes": ["train/b/conflict.png"],
        "twice": ["train/a/copy.png"],
        "16 bits": ["train/a/16.png"],
        "palette": ["train/a/P.gif", "train/b/frames.gif"],
        "colour space": ["train/a/CMYK.jpg"],
        "alpha": ["train/a/RGBA.png"],
        "frames": ["train/b/frames.gif"],
        "turned": ["train/a/bits9.jpg", "train/b/turned.png"],
        "gray": ["train/a/16.png"],
    }
    train = found.splits["train"]
    assert (train.images, train.unreadable, train.smallest, train.largest) == (25, 3, (8, 8), (64, 64))
    assert dict(train.formats) == {"PNG": 16, "JPEG": 3, "GIF": 2, "WEBP": 1}


def test_what_the_decoder_says_of_an_image_is_told_with_its_name_and_nowhere_else(hostile, capfd, monkeypatch):
    with monkeypatch.context() as patched:
        if hasattr(os, "memfd_create"):  # no folder for temporary files is needed, which may be gone by now
            patched.setattr("tempfile.tempdir", str(hostile / "gone"))
        survey(unsplit(hostile), workers=0)
    (damaged,) = [f for f in survey(unsplit(hostile), workers=0).findings if f.kind == "damaged"]
    assert all(said.startswith("Corrupt JPEG data") for _, said in damaged.images)
    assert capfd.readouterr() == ("", "")
    os.write(2, b"still here")
    assert capfd.readouterr().err == "still here"


def test_workers_find_the_same(hostile, monkeypatch):
    monkeypatch.setattr("lrtrain.data.inspect._FEW", 0)
    assert survey(unsplit(hostile), workers=2) == survey(unsplit(hostile), workers=0)


def test_every_kind_has_words_and_what_refuses_has_a_hint():
    assert all(words and (hint or level == "note") for level, words, hint in KINDS.values())


def test_copies_count_once_each_and_leaks_are_of_train_alone(tmp_path):
    tree(tmp_path / "train", {"a": 1})
    image(tmp_path / "train" / "b" / "0.png", value=99)
    for name in ("train/a/1", "train/a/2", "val/a/0", "val/b/0", "test/a/0"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "train" / "a" / "0.png", tmp_path / f"{name}.png")
    image(tmp_path / "val" / "a" / "1.png", value=77)
    image(tmp_path / "test" / "b" / "1.png", value=77)
    found = {f.kind: f.images for f in survey(unsplit(tmp_path), 0).findings if f.kind != "blank"}
    same = "train/a/0.png"
    assert found == {
        "leak": [("val/a/0.png", same), ("val/b/0.png", same), ("test/a/0.png", same)],
        "two classes": [("val/b/0.png", same), ("test/b/1.png", "val/a/1.png")],
        "twice": [("train/a/1.png", same), ("train/a/2.png", same)],
    }


def test_what_is_held_out_may_have_leaked(tmp_path):
    tree(tmp_path, {"a": 4, "b": 4})
    for i in range(1, 4):
        shutil.copy(tmp_path / "a" / "0.png", tmp_path / "a" / f"{i}.png")
    source = opened(name="imagefolder", root=str(tmp_path), val_fraction=0.5)
    (leak,) = [f for f in survey(source, 0).findings if f.kind == "leak"]
    # The images of b are those of a, too.
    assert leak.count >= 2


def test_datasets_without_files_are_looked_at_by_their_pixels():
    found = survey(opened(name="digits"), 0)
    assert (found.splits["train"].images, found.splits["train"].smallest) == (1437, (8, 8))
    assert [f.kind for f in found.findings] == []


def test_one_command_says_it_all_and_its_skip_list_leaves_out_what_cannot_be_read(lrtrain, hostile, tmp_path):
    ended = lrtrain("check", "photos", "--write-skip-list", "skip.txt", "--json", "found.json")
    assert (ended.code, ended.err) == (3, "")
    assert not {"\x1b", "\u202e"} & set(ended.out)
    for words in (
        "error: 3 images cannot be read",
        "train/b/cut.jpg: image file is truncated",
        "train/b/empty.png: it is empty (0 bytes)",
        "train/b/\\udcff\\x1b[31m\\u202e.png: its content is no image format",
        "warning: 1 image in train and in a split that is evaluated",
        "val/a/leak.png = train/a/2.png",
        "train/b/wrong.jpg is PNG",
        "1 hidden or system files",
        "30 images in 2 classes: 1 problem, 7 warnings; `lrtrain fit` would refuse",
    ):
        assert words in ended.out
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["exit_code"], found["splits"]["train"]["unreadable"]) == (3, 3)
    assert found["findings"][0]["count"] == 3

    (tmp_path / "c.yaml").write_text(CONFIG)
    ended = lrtrain("check", "c.yaml")
    assert ended.code == 0, ended.out
    assert "left out: 3 images named in skip.txt" in ended.out
    assert "7 warnings, no problem" in ended.out

    (tmp_path / "photos/train/a/late.png").write_bytes(b"")
    ended = lrtrain("check", "c.yaml", "--write-skip-list", "more.txt")
    assert (ended.code, "wrote more.txt, 1 image: review it, then add its lines to skip.txt" in ended.out) == (3, True)
    (tmp_path / "photos/train/a/late.png").unlink()

    ended = lrtrain("check", "c.yaml", "--strict", COLUMNS="40", LANG="C", LC_ALL="C", PYTHONIOENCODING="ascii")
    assert ended.code == 3
    # Only the names of images are longer, so that they can be copied.
    assert all(len(line) <= 40 for line in ended.out.splitlines() if "train/" not in line)
    assert "--strict refuses" in ended.out.replace("\n", " ")

    ended = lrtrain("fit", "c.yaml", "--out", "run")
    assert ended.code == 0, ended.err
    assert "left out: 3 images named in skip.txt" in ended.out
    assert f"skip_list: {tmp_path / 'skip.txt'}" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_skip_list_that_is_not_there_is_written_as_the_hint_says(lrtrain, hostile, tmp_path):
    (tmp_path / "c.yaml").write_text(CONFIG)
    ended = lrtrain("check", "c.yaml")
    line = "`lrtrain check CONFIG --set dataset.skip_list=null --write-skip-list FILE` writes one"
    assert (ended.code, ended.out) == (3, "")
    assert line in ended.err
    ended = lrtrain("check", "c.yaml", *line.split()[3:5], "--write-skip-list", "skip.txt")
    assert (ended.code, ended.err) == (3, "")
    assert "leave them out with `skip_list: skip.txt` inside `dataset`" in " ".join(ended.out.split())
    assert lrtrain("check", "c.yaml").code == 0


def test_a_folder_and_a_config_that_cannot_be_trained_on_are_told_whole(lrtrain, tmp_path):
    root = tree(tmp_path / "photos", {"train/ants": 4, "train/Ants": 1, "val/ants": 1, "val/wasps": 1})
    (root / "train" / "hollow").mkdir()
    os.mkfifo(root / "train" / "ants" / "pipe.png")
    (root / "train" / "ants" / "loop").symlink_to(root)
    (root / "train" / "ants" / "0.png").write_bytes(b"")
    (tmp_path / "c.yaml").write_text(CONFIG.replace(", skip_list: skip.txt", ""))
    ended = lrtrain("check", "c.yaml")
    assert ended.code == 3
    for words in (
        "class 'hollow' is empty",
        "classes 'Ants' and 'ants'",
        "class 'wasps' is in val/ but not in train/",
        "pipe.png' is no regular file",
        "loop' links to a folder that it lies in",
        "train/ants/0.png: it is empty",
        "BatchNorm needs two images or more at a time",
        "no val images of 1 of 2 classes: Ants",
    ):
        assert words in ended.out, ended.out
    assert "Traceback" not in ended.err


def test_a_last_batch_of_one_image_is_a_problem_of_the_config(lrtrain, tmp_path):
    noisy(tmp_path / "photos", {"train": 4, "val": 1})
    config = CONFIG.replace(", skip_list: skip.txt", "").replace("batch_size: 4", "batch_size: 7")
    (tmp_path / "c.yaml").write_text(config)
    for command in ("check", "fit"):
        ended = lrtrain(command, "c.yaml")
        assert ended.code == 2
        said = ended.out + ended.err
        assert "c.yaml:2  batch_size" in said
        assert "write `drop_last: true`, or `batch_size: 6`, or take a model without BatchNorm" in said
    assert not (tmp_path / "runs").exists()


def test_what_fit_refuses_of_the_groups_check_refuses(lrtrain, tmp_path):
    noisy(tmp_path / "photos", {"train": 4, "val": 1})
    (tmp_path / "c.yaml").write_text(CONFIG.replace(", skip_list: skip.txt", ""))
    for command in ("check", "fit"):
        ended = lrtrain(command, "c.yaml", "--set", "optimizer.groups=[{params: ^backbone, lr: 0.1}]")
        assert ended.code == 2
        assert "no trainable parameter matches '^backbone'" in ended.out + ended.err


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["cache=disk"], "cache: disk needs image files"),
        (["sync_bn=true", "device=cpu"], "sync_bn needs CUDA"),
        (["cuda_graph=true", "device=cpu"], "cuda_graph: true cannot be with device cpu"),
        (["sync_bn=true", "cuda_graph=true"], None),  # the machine that trains may have a GPU
    ],
)
def test_what_fit_refuses_of_a_config_alone_check_refuses(lrtrain, tmp_path, sets, words):
    digits = CONFIG.replace("{name: imagefolder, root: photos, skip_list: skip.txt}", "digits").replace("4", "5")
    (tmp_path / "c.yaml").write_text(digits)
    for command in ("check", "fit") if words else ("check",):
        ended = lrtrain(command, "c.yaml", *(arg for one in sets for arg in ("--set", one)))
        assert ended.code == (2 if words else 0), ended.out + ended.err
        assert (words or "") in ended.out + ended.err


CROP = "transforms: {train: [{name: RandomCrop, size: 12}], val: [{name: CenterCrop, size: 12}]}"


@pytest.mark.parametrize(
    ("lists", "more", "words"),
    [
        (CROP, "", "a crop of 12x12 does not fit into 16x10 pixels"),
        ("transforms: {train: [RandomHorizontalFlip], val: []}", "", "images of different sizes, which make no batch"),
        (CROP.replace("RandomCrop", "RandomResizedCrop"), "cache: memory", "cache: memory needs images of one size"),
        ("transforms: {train: ['mine:nothing'], val: []}", "", "cannot import 'mine:nothing'"),
        ("color: gray, transforms: {val: [{name: Normalize, mean: [0, 0], std: [1, 1]}]}", "", "2 means for images of"),
        (CROP.replace("12", "9"), "model: squeezenet1_1", "squeezenet1_1 cannot take images of 3x9x9"),
        ("", "eval_every: 0.01ep", "eval_every: 0.01ep is less than half a step"),
        ("", "model: {name: small_cnn, weights: gone.safetensors}", "gone.safetensors"),
        (CROP.replace("12", "9"), "model: {name: small_cnn, weights: gone.safetensors}", "gone.safetensors"),
        ("transforms: {train: [{name: RandomCrop, size: 9}], val: []}", "", "the val transforms leave"),
        ("transforms: {train: [{name: RandomCrop, size: 9}], val: [{name: CenterCrop, size: 12}]}", "", ""),
    ],
)
def test_what_fit_would_refuse_of_the_images_check_refuses(monkeypatch, capfd, tmp_path, lists, more, words):
    """Of the least and the greatest of them: one in forty is small, and none of those that `fit` tries."""
    root = noisy(tmp_path / "photos", {"train": 20, "val": 6})
    for name in ("train/a/4", "val/b/3"):
        pixels(1, (10, 16)).save(root / f"{name}.png")
    config = CONFIG.replace(", skip_list: skip.txt", f", {lists}" * bool(lists))
    if more.startswith("model"):
        config = config.replace("model: small_cnn\n", "")
    (tmp_path / "c.yaml").write_text(config + more)
    monkeypatch.chdir(tmp_path)
    typed = Typed(monkeypatch, capfd)
    ended = typed("check", "c.yaml")
    assert ended.code == (2 if words else 0), ended.out + ended.err
    assert words in " ".join(ended.out.split())
    refused = typed("fit", "c.yaml")
    assert (refused.code != 0) == bool(words), refused.err


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        (CROP, "a crop of 12x12 does not fit into 16x10 pixels"),
        (CROP.replace("12", "9"), ""),
        ("transforms: {train: [{name: RandomCrop, size: 9}], val: []}", ""),
    ],
)
def test_images_that_cannot_be_read_hide_nothing_of_the_others(lrtrain, tmp_path, lists, words):
    root = noisy(tmp_path / "photos", {"train": 20, "val": 6})
    pixels(1, (10, 16)).save(root / "train/a/4.png")
    for name in ("train/a/0.png", "train/b/19.png", "val/a/0.png"):
        (root / name).write_bytes(b"no image")
    (tmp_path / "c.yaml").write_text(CONFIG.replace("skip_list: skip.txt", lists))
    ended = lrtrain("check", "c.yaml")
    assert ended.code == 3
    assert ended.out.count("error: ") == 1 + bool(words), ended.out
    assert words in " ".join(ended.out.split())


def test_images_that_exif_turns_are_of_another_size(lrtrain, tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    for i in range(40):
        for split in ("train/a", "train/b", "val/a", "val/b"):
            (folder := tmp_path / "photos" / split).mkdir(parents=True, exist_ok=True)
            pixels(i, (24, 16)).save(folder / f"{i}.jpg", **({"exif": exif} if i == 7 else {}))
    lists = "transforms: {train: [{name: Resize, size: 9}], val: [{name: Resize, size: 9}]}"
    (tmp_path / "c.yaml").write_text(CONFIG.replace("skip_list: skip.txt", lists))
    ended = lrtrain("check", "c.yaml")
    assert ended.code == 2, ended.out
    assert "train transforms leave images of different sizes, which make no batch" in " ".join(ended.out.split())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 3, "; name a folder of images, or a config"),
        (["photos.tar.gz"], 3, "is an archive"),
        (["c.yaml", "--write-skip-list", "c.yaml"], 2, "is there already"),
    ],
)
def test_what_cannot_be_checked_is_an_error(lrtrain, tmp_path, arguments, code, words):
    (tmp_path / "c.yaml").write_text(CONFIG)
    (tmp_path / "photos.tar.gz").write_bytes(b"x")
    ended = lrtrain("check", *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert words in ended.err
    assert ended.err.startswith("error: ")


def test_what_is_given_is_a_config_a_run_or_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(CONFIG)
    for name in ("photos", "run"):
        Path(name).mkdir()
    foreign = CONFIG.replace(
        "dataset: {name: imagefolder, root: photos, skip_list: skip.txt}", "dataset: {name: 'a:b'}"
    )
    Path("run/config.yaml").write_text(foreign)
    assert start_check(Path("c.yaml"), ["seed=3"], trust=False).seed == 3
    assert start_check(Path("photos"), None, trust=False) == Path("photos")
    assert start_check(Path("run"), None, trust=True).dataset.name == "a:b"
    Path("photos/ants").mkdir()
    Path("photos/config.yaml").write_text("title: my photos, or a config of other ones")
    assert start_check(Path("photos"), None, trust=False) == Path("photos")
    for path, overrides, words in (
        ("run", [], "names code outside lrtrain"),
        ("photos", ["seed=3"], "--set changes a config, and 'photos' is none"),
        ("nowhere", ["seed=3"], "--set changes a config, and 'nowhere' is none"),
        ("no.yaml", [], "there is no config file"),
    ):
        with pytest.raises(ConfigError, match=words):
            start_check(Path(path), overrides, trust=False)


def test_a_folder_is_looked_at_without_saying_what_to_evaluate_on(tmp_path):
    tree(tmp_path, {"a": 2, "b": 2})
    source = unsplit(tmp_path)
    assert (source.counts()["train"], len(source.val), source.problems) == ({"a": 2, "b": 2}, 0, ())
    (tmp_path / "a").rename(tmp_path / os.fsdecode(b"\xff"))
    assert ["is not UTF-8" in problem.what for problem in unsplit(tmp_path).problems] == [True]
    with pytest.raises(DataError):
        unsplit(tmp_path / "b" / "0.png")


def test_a_config_may_come_from_a_pipe_that_its_writer_opens_late(tmp_path):
    os.mkfifo(tmp_path / "c")
    config = {
        "model": "small_cnn",
        "dataset": "digits",
        "batch_size": 8,
        "epochs": 1,
        "optimizer": {"name": "SGD", "lr": 1},
    }
    writer = threading.Timer(0.3, lambda: (tmp_path / "c").write_text(json.dumps(config)))
    writer.start()
    assert start_check(tmp_path / "c", None, trust=False).batch_size == 8
    writer.join()
