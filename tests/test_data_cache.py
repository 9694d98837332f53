"""Prepared images in memory, in a file or nowhere: the same batches, and a file is trusted only when it is complete."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lrtrain.build import build
from lrtrain.config import yaml
from lrtrain.config.load import resolve
from lrtrain.config.schema import Dataset
from lrtrain.data.batches import Batches
from lrtrain.data.build import make_pipeline
from lrtrain.data.disk_cache import StoredImages, cache_folder, locked
from lrtrain.data.open import open_source
from lrtrain.data.pairs import PairSplit
from lrtrain.data.source import Part
from lrtrain.errors import ConfigError, DataError, EnvironmentFault
from lrtrain.sinks.console import Screen
from lrtrain.sinks.plan_view import show_plan
from lrtrain.world import World
from tests.folders import files_of_at_most, nobodys_home, noise, where

REPOSITORY = Path(__file__).parents[1]
# Some done once per image, some drawn for each image, some drawn for a batch.
TRANSFORMS = [
    {"name": "Resize", "size": [14, 14]},
    {"name": "ColorJitter", "brightness": 0.5},
    {"name": "RandomCrop", "size": 12},
]


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """The folder of the files."""
    folder = tmp_path / "kept"
    monkeypatch.setenv("LRTRAIN_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def roomy_disk(monkeypatch):
    """A disk with room, whatever the machine's own has: `auto` leaves a nearly full one alone."""
    usage = type("Usage", (), {"total": 2**40, "free": 2**39})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)


@pytest.fixture
def folder(tmp_path):
    """40 images of noise, 16x16, in two classes, and 10 beside as val."""
    return noise(tmp_path / "images", {"train": 20, "val": 5})


def batches(root, transforms=TRANSFORMS, *, cache="disk", workers=0, seed=1, **dataset):
    named = {"transforms": {"train": transforms}} if transforms else {}
    section = Dataset(**{"name": "imagefolder", "root": root and str(root), **named, **dataset})
    pipeline = make_pipeline(open_source(section, seed, where), section, seed=seed, where=where)
    return Batches(pipeline, batch_size=8, where=where, cache=cache, workers=workers)


def digest(made):
    bits = [b.images.numpy().tobytes() + b.labels.numpy().tobytes() for b in (*made.train(0, 7), *made.evaluate())]
    return hashlib.sha256(b"".join(bits)).hexdigest()


def files(kept, kind="npy"):
    return sorted(kept.glob(f"*.{kind}"))


@pytest.fixture
def little_memory(monkeypatch):
    """So little that nothing fits into a quarter of it."""
    monkeypatch.setattr("lrtrain.data.cache.available_bytes", lambda: 1000)


# The same batches


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("transforms", [None, TRANSFORMS, TRANSFORMS[:1]], ids=["default", "random", "fixed"])
def test_batches_are_the_same_bits_wherever_images_are_kept(folder, kept, workers, transforms, monkeypatch):
    reference = digest(batches(folder, transforms, cache="off"))
    for cache in ("memory", "auto", "disk", "disk"):
        assert digest(batches(folder, transforms, cache=cache, workers=workers)) == reference
    assert len(files(kept)) == 2
    monkeypatch.setattr("lrtrain.data.cache._FEW_PIXELS", 0)  # prepared by workers
    monkeypatch.setattr("lrtrain.data.cache._CHUNK", 7)
    monkeypatch.setenv("LRTRAIN_CACHE", str(kept.with_name("other")))
    for cache in ("memory", "disk"):
        assert digest(batches(folder, transforms, cache=cache, workers=workers)) == reference


def test_a_second_run_reads_no_image_again(folder, monkeypatch):
    first = digest(batches(folder))
    second = batches(folder)
    monkeypatch.setattr("lrtrain.data.files.FileSplit.read", None)
    assert digest(second) == first


def test_the_file_is_a_plain_array_of_the_prepared_images(folder, kept):
    made = batches(folder)
    array = np.load(next(iter(kept.glob("train-*.npy"))))
    stages, split = made.pipeline.train, made.pipeline.source.train
    assert array.dtype == np.uint8
    assert np.array_equal(array, np.stack([stages.prepare(split.read(i)).numpy() for i in range(len(split))]))


def test_an_image_of_the_file_is_a_copy_and_workers_that_do_not_fork_open_the_file_again(folder, kept):
    batches(folder)
    images = StoredImages(files(kept)[0])
    images[0].zero_()
    again = pickle.loads(pickle.dumps(images))
    assert again.shape == images.shape
    assert again[0].any()
    assert torch.equal(again[1], images[1])


class Darker(torch.nn.Module):
    """Halves an image where it lies."""

    def forward(self, image):
        return image.floor_divide_(2)


def test_a_transform_that_works_in_place_leaves_the_kept_images_alone(folder):
    own = [{"name": "tests.test_data_cache:Darker"}]
    reference = digest(batches(folder, own, cache="off"))
    for cache in ("memory", "disk"):
        made = batches(folder, own, cache=cache)
        assert [digest(made), digest(made)] == [reference, reference]


# Another file for other images


def test_what_changes_pixels_changes_the_file(folder, kept):
    batches(folder)
    seen = {path: path.stat().st_mtime_ns for path in files(kept)}

    def new(*args, **options):
        batches(*args, **options)
        found = {path: path.stat().st_mtime_ns for path in files(kept)}
        added = sorted(path.name.split("-")[0] for path in found.keys() - seen.keys())
        assert all(found[path] == time for path, time in seen.items())
        seen.update(found)
        return added

    image = folder / "train" / "a" / "3.png"
    assert new(folder) == []
    assert new(folder, [TRANSFORMS[0], TRANSFORMS[2]]) == []  # what is drawn later does not matter
    assert new(folder, [{"name": "Resize", "size": [13, 13]}, *TRANSFORMS[1:]]) == ["train", "val"]
    assert new(folder, [{**TRANSFORMS[0], "interpolation": "nearest"}, *TRANSFORMS[1:]]) == ["train", "val"]
    assert new(folder, color="gray") == ["train", "val"]
    coloured = [{"name": "RGB"}, *TRANSFORMS]
    assert new(folder, coloured) == ["train"]
    assert new(folder, coloured, color="gray") == ["train", "val"]  # which gets the channels of train
    stat = image.stat()
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert new(folder) == ["train"]
    with image.open("ab") as file:
        file.write(b"\0")
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert new(folder) == ["train"]
    stat = image.stat()
    image.write_bytes(image.read_bytes()[:-1] + b"\1")
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert new(folder) == ["train"]
    image.rename(image.with_name("30.png"))
    assert new(folder) == ["train"]


def test_other_library_versions_have_another_file(folder, kept, monkeypatch):
    batches(folder)
    monkeypatch.setattr("PIL.__version__", "0.1")
    batches(folder)
    assert len(files(kept)) == 4


def test_a_changed_image_is_seen(folder):
    before = digest(batches(folder))
    Image.new("RGB", (16, 16)).save(folder / "train" / "a" / "3.png")
    assert digest(batches(folder)) == digest(batches(folder, cache="off")) != before


def test_each_part_of_one_folder_has_its_own_file(folder, kept):
    root, options = folder / "train", {"val_fraction": 0.25}
    assert digest(batches(root, **options)) == digest(batches(root, cache="off", **options))
    assert digest(batches(root, seed=2, **options)) == digest(batches(root, cache="off", seed=2, **options))
    assert len(files(kept)) == 4


def test_images_that_change_while_they_are_prepared_are_refused(folder, kept, monkeypatch):
    read = "lrtrain.data.disk_cache.npy.write_array_header_1_0"
    write = np.lib.format.write_array_header_1_0

    def touched(*args):
        os.utime(folder / "train" / "a" / "3.png")
        write(*args)

    monkeypatch.setattr(read, touched)
    with pytest.raises(DataError, match="images of train changed while they were prepared"):
        batches(folder)
    assert not files(kept)
    assert not files(kept, "partial")


# Damage, interruption, several at once


@pytest.mark.parametrize("damage", ["empty", "cut", "longer", "header", "shape", "dtype", "text", "pixel", "number"])
def test_a_damaged_file_is_made_anew(folder, kept, damage):
    reference = digest(batches(folder))
    path = next(iter(kept.glob("train-*.npy")))
    content, array, found = path.read_bytes(), np.load(path), path.stat()
    if damage in ("shape", "dtype"):
        np.save(path, array[1:] if damage == "shape" else array.astype(np.int16))
    else:
        damaged = {"empty": b"", "cut": content[:-1], "longer": content + b"\0", "text": b"hello"}
        damaged["number"] = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            damaged["number"], {"descr": "|u1", "fortran_order": False, "shape": (2**70, *array.shape[1:])}
        )
        damaged["number"] = damaged["number"].getvalue()
        damaged["pixel"] = content[:-1] + bytes([content[-1] ^ 1])
        path.write_bytes(damaged.get(damage, content[:10] + b"((((" + content[14:]))
    if damage != "pixel":  # which only the time of the change tells
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert digest(batches(folder)) == reference
    assert path.read_bytes() == content


@pytest.mark.parametrize("to", ["header", "image"])
def test_a_file_that_is_cut_while_it_is_in_use_is_told_and_made_anew(folder, kept, to):
    """A mapped page of it that is gone would end the process by a signal."""
    reference = digest(batches(folder))
    path = files(kept)[0]
    images, size = StoredImages(path), path.stat().st_size
    os.truncate(path, 8 if to == "header" else size - 1)
    with pytest.raises(DataError, match="was cut while it was in use") as told:
        images[len(images) - 1]
    assert "--resume" in str(told.value)
    assert digest(batches(folder)) == reference


def test_nothing_is_written_through_a_link_that_others_put_in_the_folder(folder, kept, tmp_path):
    batches(folder)
    for path in files(kept):
        path.unlink()
        (tmp_path / "precious").write_text("mine")
        path.with_suffix(".partial").symlink_to(tmp_path / "precious")
    reference = digest(batches(folder))
    assert (tmp_path / "precious").read_text() == "mine"
    for path in files(kept):
        path.unlink()
        path.with_suffix(".lock").unlink(missing_ok=True)
        path.with_suffix(".lock").symlink_to(tmp_path / "made")
    with pytest.raises(EnvironmentFault, match="symbolic links"):
        batches(folder)
    assert not (tmp_path / "made").exists()
    assert digest(batches(folder, cache="auto")) == reference
    for lock in files(kept, "lock"):
        lock.unlink()
        lock.hardlink_to(tmp_path / "precious")  # versions of filelock empty what they lock
    with pytest.raises(EnvironmentFault, match="it is no lock, but a file of 4 bytes"):
        batches(folder)
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o755])
def test_who_may_write_in_a_shared_folder_may_wait_for_its_locks(tmp_path, mode):
    (shared := tmp_path / "shared").mkdir()
    shared.chmod(mode)
    before = os.umask(0o022)
    try:
        for _ in range(2):
            with locked(shared / "train.npy"):
                assert (shared / "train.lock").stat().st_mode & 0o777 == mode & 0o666
    finally:
        os.umask(before)


BUILDER = """
import hashlib, sys, time
from pathlib import Path
from tests.test_data_cache import batches, digest
from lrtrain.data import cache
from lrtrain.data.files import FileSplit

root, go = map(Path, sys.argv[1:])
cache._CHUNK = 4
read, parts = FileSplit.read, cache._Making.parts

def waiting(self):
    for number, part in enumerate(parts(self)):
        if number == 3:
            print("half built", flush=True)
            while not go.exists():
                time.sleep(0.02)
        yield part

cache._Making.parts = waiting
print(digest(batches(root)), flush=True)
"""


@pytest.fixture
def builder(folder, tmp_path):
    """Start a process that builds the files, and waits halfway until the file `go` is there."""
    started = []

    def start():
        command = [sys.executable, "-c", BUILDER, str(folder), str(tmp_path / "go")]
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=env, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def line(stream):
    """The next line, or nothing where none comes."""
    return stream.readline() if select.select([stream], [], [], 100)[0] else ""


def test_of_two_that_build_at_once_one_waits_and_both_have_the_right_images(folder, kept, tmp_path, builder):
    reference = digest(batches(folder, cache="off"))
    one = builder()
    assert line(one.stdout) == "half built\n"
    two = builder()
    assert "waiting for another process that prepares" in line(two.stderr)
    batches(folder, color="gray")  # of other images: what is being built is not taken for abandoned
    assert len(files(kept, "partial")) == 1
    assert len(files(kept)) == 2
    (tmp_path / "go").touch()
    for process in (one, two):
        out, err = process.communicate(timeout=60)
        assert out.split()[-1] == reference, err
    assert len(files(kept)) == 4
    assert not files(kept, "partial")


def test_where_a_builder_is_killed_the_one_that_waits_takes_over(folder, kept, tmp_path, builder):
    one = builder()
    assert line(one.stdout) == "half built\n"
    two = builder()
    assert "waiting" in line(two.stderr)
    one.send_signal(signal.SIGKILL)
    (tmp_path / "go").touch()
    out, err = two.communicate(timeout=60)
    assert out.split()[-1] == digest(batches(folder, cache="off")), err


def test_what_a_killed_builder_leaves_is_never_trusted_and_removed_by_the_next(folder, kept, builder):
    one = builder()
    assert line(one.stdout) == "half built\n"
    one.send_signal(signal.SIGKILL)
    one.wait()
    assert files(kept, "partial")
    assert not files(kept)
    batches(folder, color="gray")  # of other images
    assert not files(kept, "partial")
    assert digest(batches(folder)) == digest(batches(folder, cache="off"))


# Where it cannot be


@pytest.mark.parametrize("cache", ["disk", "auto"])
def test_a_folder_that_cannot_be_written_is_named(folder, kept, cache, little_memory):
    kept.write_text("a file")  # root may write into any folder, but not into a file
    if cache == "disk":
        with pytest.raises(
            EnvironmentFault, match=r"cannot keep the images of train, 23\.5 kB, in .*/kept/train-"
        ) as e:
            batches(folder)
        assert e.value.problems[0].where == "cfg.yaml cache"
        assert "LRTRAIN_CACHE" in e.value.problems[0].hint
    else:
        made = batches(folder, cache="auto")
        assert all("off, since" in words and "cannot be written" in words for words in made.kept_words)
        assert digest(made) == digest(batches(folder, cache="off"))


@pytest.mark.parametrize("cache", ["disk", "auto"])
def test_a_file_system_without_locks_is_told_and_not_waited_for(folder, cache, little_memory, monkeypatch):
    def missing(descriptor, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", missing)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits"))
    if cache == "disk":
        with pytest.raises(EnvironmentFault, match="its file system has no file locks"):
            batches(folder)
    else:
        assert "its file system has no file locks" in batches(folder, cache="auto").kept_words[0]


@pytest.mark.parametrize("cache", ["disk", "auto"])
def test_a_file_system_without_times_is_told(folder, kept, cache, little_memory, monkeypatch):
    monkeypatch.setattr("os.utime", lambda *_, **__: None)
    words = "its file system keeps no times of files"
    if cache == "disk":
        with pytest.raises(EnvironmentFault, match=words):
            batches(folder)
    else:
        assert words in batches(folder, cache="auto").kept_words[0]
    assert not list(kept.glob("*.npy"))


@pytest.mark.parametrize("cache", ["disk", "auto"])
def test_a_disk_that_fills_up_is_told_and_nothing_stays(folder, kept, cache, little_memory):
    with files_of_at_most(10_000):
        if cache == "disk":
            with pytest.raises(EnvironmentFault, match=r"cannot keep the images of train.*: File too large"):
                batches(folder)
        else:
            made = batches(folder, cache="auto")
            assert "off, since 23.5 kB are more than a quarter of the available memory" in made.kept_words[0]
            assert "File too large" in made.kept_words[0]
    assert not list(kept.glob("train-*.npy"))
    assert not files(kept, "partial")


def test_processes_of_one_machine_share_its_memory(folder, kept, monkeypatch):
    section = Dataset(name="imagefolder", root=str(folder), transforms={"train": TRANSFORMS})
    pipeline = make_pipeline(open_source(section, 1, where), section, seed=1, where=where)
    monkeypatch.setattr("lrtrain.data.cache.available_bytes", lambda: 4 * 30_000)  # for one

    def made(processes, cache):
        world = World(0, processes, local_size=processes)
        return Batches(pipeline, batch_size=40, where=where, cache=cache, world=world).kept_words[0]

    assert made(1, "auto").startswith("memory")
    assert made(2, "auto").startswith("train: disk")
    assert made(4, "memory").startswith("memory")
    with pytest.raises(
        EnvironmentFault, match=r"needs 23\.5 kB in each of 6 processes for train; 120 kB are available"
    ):
        made(6, "memory")


def test_auto_is_memory_then_disk_then_off(folder, kept, monkeypatch):
    assert batches(folder, cache="auto").kept_words == ["memory, 27.8 kB"]
    assert not kept.exists()
    monkeypatch.setattr("lrtrain.data.cache.available_bytes", lambda: 4 * 20_000)  # val fits
    train, val = batches(folder, cache="auto").kept_words
    assert train.startswith(f"train: disk, {kept}/train-")
    assert train.endswith(".npy, 23.5 kB")
    assert val == "val: memory, 4.32 kB"
    full = type("Usage", (), {"total": 10 * 2**30, "free": 2**30})
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    assert batches(folder, cache="auto").kept_words[0] == train  # the file is there
    words = batches(folder, cache="auto", color="gray").kept_words
    assert words[0].startswith("memory")
    words = batches(folder, [{"name": "Resize", "size": [15, 15]}], cache="auto").kept_words
    assert words[0] == (
        f"train: off, since 27 kB are more than a quarter of the available memory, and {kept} has 1.07 GB free of "
        "10.7 GB, which leaves too little"
    )


def test_images_without_times_cannot_go_on_disk(little_memory):
    with pytest.raises(ConfigError, match="cache: disk needs image files") as caught:
        batches(None, None, name="digits")
    assert caught.value.problems[0].where == "cfg.yaml cache"
    made = batches(None, None, name="digits", cache="auto")
    assert "only image files go on disk" in made.kept_words[0]
    assert len(next(made.train(0, 1)).labels) == 8


def test_a_part_of_images_without_times_has_none():
    whole = PairSplit("own", [], np.zeros(3, dtype=np.int64), 1)
    assert Part(whole, np.array([1])).stamp(0) is None


def test_images_of_different_sizes_are_refused_on_disk_and_told_by_auto(folder):
    Image.new("RGB", (20, 16)).save(folder / "train" / "a" / "3.png")
    photos = [{"name": "RandomResizedCrop", "size": 10}]
    with pytest.raises(ConfigError, match="cache: disk needs images of one size"):
        batches(folder, photos)
    words = batches(folder, photos, cache="auto").kept_words
    assert words[0] == (
        "train: off, since it is not known that the images are of one size before anything random is done to them"
    )


@pytest.mark.parametrize(
    ("own", "words"),
    [("~nobody-such/x", "LRTRAIN_CACHE '~nobody-such/x' is no path"), ("", "the cache's folder is not known")],
)
def test_a_folder_in_the_home_of_nobody_is_a_fault_of_the_environment(monkeypatch, own, words):
    nobodys_home(monkeypatch)
    monkeypatch.setenv("LRTRAIN_CACHE", own)
    with pytest.raises(EnvironmentFault, match=words) as fault:
        cache_folder()
    assert "set LRTRAIN_CACHE" in fault.value.problems[0].hint


def test_without_a_home_auto_keeps_nothing_on_disk(folder, monkeypatch):
    nobodys_home(monkeypatch)
    monkeypatch.setattr("lrtrain.data.cache.available_bytes", lambda: 1000)
    train, val = batches(folder, cache="auto").kept_words
    for words in (train, val):
        assert "off, since" in words
        assert "and the cache's folder is not known: Could not determine home directory" in words


def test_a_pipe_in_place_of_a_cache_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "train.npy")
    with pytest.raises(OSError, match="no regular file"):
        StoredImages(tmp_path / "train.npy")


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "kept"
    monkeypatch.delenv("LRTRAIN_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "lrtrain"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, by the XDG specification
    assert cache_folder() == tmp_path / ".cache" / "lrtrain"


def test_the_plan_says_where_images_are_kept(folder, kept, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(kept.parent))
    monkeypatch.setenv("COLUMNS", "200")
    text = f"""
epochs: 1
batch_size: 8
model: {{name: small_cnn, width: 4}}
dataset: {{name: imagefolder, root: {folder}}}
optimizer: {{name: SGD, lr: 0.1}}
"""
    for cache, line in (("memory", "memory, 38.4 kB"), ("disk", "train: disk, ~/kept/train-"), ("off", "off")):
        show_plan(build(resolve(yaml.parse(f"{text}cache: {cache}\n", "test.yaml"))), Screen())
        (found,) = (row for row in capsys.readouterr().out.splitlines() if row.startswith("cache"))
        assert found.removeprefix("cache").strip().startswith(line)
