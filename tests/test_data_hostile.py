"""Data that are wrong in every way that was met: refused by name before training, or read by the rule that is written."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from lrtrain.data.classes import twins
from lrtrain.data.decode import decode
from lrtrain.data.files import IMAGE_SUFFIXES
from lrtrain.data.inspect import _PROMISED
from lrtrain.errors import DataError
from tests.folders import image, opened, refused, tree, write

# Folders: what is done to train/{ants,bees} and val/{ants,bees}, and what is said of it.


def no_root(root):
    return root / "nowhere"


def an_archive(root):
    write(root / "photos.zip")
    return root / "photos.zip"


def only_files(root):
    image(root / "flat" / "0.png")
    return root / "flat"


def one_class(root):
    return tree(root / "one", {"train/ants": 2, "val/ants": 1})


def an_empty_class(root):
    (root / "train" / "hollow").mkdir()


def a_class_without_images(root):
    write(root / "train" / "texts" / "a.txt")


def a_class_that_val_has_alone(root):
    tree(root / "val", {"wasps": 1})


def case_twins(root):
    tree(root, {"train/Ants": 1, "val/Ants": 1})


def twins_in_coding(root):
    tree(root / "train", {"caf\u00e9": 1, "cafe\u0301": 1})


def twins_in_spaces(root):
    tree(root / "train", {"ants ": 1})


def a_twin_in_val(root):
    os.rename(root / "val" / "bees", root / "val" / "Bees")


def a_symlink_loop(root):
    (root / "train" / "ants" / "loop").symlink_to(root / "train")


def folders_without_end(root):
    image(root.joinpath("train", "ants", *["d"] * 150, "0.png"))


def a_link_to_itself(root):
    (root / "train" / "ants" / "self.png").symlink_to("self.png")


def a_pipe(root):
    os.mkfifo(root / "train" / "ants" / "pipe.jpg")


def a_broken_link(root):
    (root / "train" / "ants" / "gone.png").symlink_to("nowhere")


def a_link_to_a_device(root):
    (root / "train" / "ants" / "zero.png").symlink_to("/dev/zero")


def an_empty_file(root):
    write(root / "train" / "ants" / "0.png", b"")


def two_vals(root):
    tree(root / "valid", {"ants": 1})


def a_class_that_links_to_another(root):
    (root / "train" / "wasps").symlink_to("ants")


def a_class_that_links_into_another(root):
    tree(root / "train", {"bees/young": 2})
    (root / "train" / "wasps").symlink_to("bees/young")


def a_val_that_links_to_train(root):
    shutil.rmtree(root / "val")
    (root / "val").symlink_to("train")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (a_class_that_links_to_another, "train/ants', whose images are read already | remove the link"),
        (a_class_that_links_into_another, "train/bees/young', whose images are read already | remove the link"),
        (a_val_that_links_to_train, "train/ants', which is trained on, and 1 more | remove the link"),
        (no_root, "the dataset's root does not exist"),
        (an_archive, "is an archive | unpack it"),
        (only_files, "no class folders"),
        (one_class, "there must be two classes or more"),
        (an_empty_class, "class 'hollow' is empty"),
        (a_class_without_images, "class 'texts' has no images"),
        (a_class_that_val_has_alone, "class 'wasps' is in val/ but not in train/ | rename or remove the folder"),
        (case_twins, "classes 'Ants' and 'ants' in"),
        (twins_in_coding, "differ only in how accents are coded"),
        (twins_in_spaces, "differ only in spaces"),
        (a_twin_in_val, "train/ has 'bees': give them the same name"),
        (a_symlink_loop, "links to a folder that it lies in"),
        (folders_without_end, "lies more than 100 folders deep"),
        (a_link_to_itself, "is a broken link"),
        (a_pipe, "is no regular file (a pipe, socket or device)"),
        (a_link_to_a_device, "is no regular file (a pipe, socket or device)"),
        (a_broken_link, "is a broken link"),
        (an_empty_file, "0.png: "),
        (two_vals, "val/ and valid/; which is evaluated?"),
    ],
)
def test_a_folder_that_is_wrong_is_refused_before_training(tmp_path, change, words):
    tree(tmp_path, {"train/ants": 2, "train/bees": 2, "val/ants": 1, "val/bees": 1})
    root = change(tmp_path) or tmp_path
    fraction = {"val_fraction": 0.5} if change is only_files else {}
    assert words in refused(DataError, name="imagefolder", root=str(root), **fraction)


@pytest.mark.parametrize("name", ["a/b", "[/b]", "\x1b[31m", "\u202eabc", "a\nb", "x" * 255], ids=ascii)
def test_a_class_or_file_may_be_called_anything(tmp_path, name):
    tree(tmp_path, {name: 2, "plain": 2})
    os.rename(tmp_path / "plain" / "0.png", os.path.join(os.fsencode(tmp_path), b"plain/\xff\n.png"))
    source = opened(name="imagefolder", root=str(tmp_path), val_fraction=0.5)
    assert source.classes == tuple(sorted((name.split("/")[0], "plain")))
    assert all(source.train.read(i).shape == (3, 8, 8) for i in range(2))


def test_links_out_of_the_root_are_followed(tmp_path):
    tree(tmp_path, {"root/a": 2, "root/b": 2, "elsewhere": 2})
    (tmp_path / "root" / "a" / "more").symlink_to(tmp_path / "elsewhere")
    assert (
        sum(opened(name="imagefolder", root=str(tmp_path / "root"), val_fraction=0.5).counts()["train"].values()) == 3
    )


def test_names_that_differ_in_more_are_no_twins():
    assert twins(["ant", "ants", "an t", "Äpfel", "Apfel"], "x") == []


@pytest.mark.parametrize("names", [("a", "A"), ("strasse", "STRASSE"), ("a b", "a  b"), ("\u212b", "\u00c5")])
def test_names_that_look_the_same_are_twins(names):
    assert len(twins(names, "x")) == 1


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("aA", "'A' and 'a'"),
        ("aa", "only one class"),
        (["1", "01", "2"], "labels '01' and '1' in"),
        (["9" * 5000, "8" * 5000], "at most 1,000 characters"),
    ],
)
def test_labels_of_a_manifest_are_held_to_the_same(tmp_path, labels, words):
    tree(tmp_path, {"i": 4})
    rows = [f"i/{i}.png,{label},train" for i, label in enumerate(labels)] + [f"i/3.png,{labels[0]},val"]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    assert words in refused(DataError, name="csv", manifest=str(tmp_path / "list.csv"))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("path,label,label\ni/0.png,a,b\n", "has two columns label"),
        ("path,label\ni/0.png,a\n./i//0.png,b\n", "'./i//0.png' is listed twice, first on line 2"),
        ("path,label\n" + "x" * 5000 + ",a\n", "no such file"),
        ('path,label\ni/0.png,a\n"i/1.png,b\ni/2.png,a\n', "is its quote closed?"),
        ('path,label\ni/0.png,a\n"i/1.png,b\n' + "i/2.png,a\n" * 20_000, "that begins after line 2; is a quote never"),
        ("path,label," + ",".join(f"c{i}" for i in range(99_999)) + "\na,b\n" * 999, "columns; at most 1,000 are read"),
        ("path,label\n" + "lost.png,a\n" * 900_000, "more than 1,000 rows are wrong, and no more were read"),
        ("path,label\n" + "x" * 2_000_000, "a line has more than 1,000,000 characters"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path, table, words):
    tree(tmp_path, {"i": 4})
    (tmp_path / "list.csv").write_text(table)
    assert words in refused(DataError, name="csv", manifest=str(tmp_path / "list.csv"), val_fraction=0.5)


def test_a_path_and_the_whole_path_of_one_file_are_one_image(tmp_path):
    tree(tmp_path, {"i": 2})
    (tmp_path / "list.csv").write_text(f"path,label\ni/0.png,a\n{tmp_path}/i/0.png,b\ni/1.png,b\n")
    words = refused(DataError, name="csv", manifest=str(tmp_path / "list.csv"), val_fraction=0.5)
    assert f"'{tmp_path}/i/0.png' is listed twice, first on line 2" in words


def test_a_dataset_of_ones_own_needs_two_classes_too(tmp_path, monkeypatch):
    (tmp_path / "lonely.py").write_text(
        "from PIL import Image\nmade = lambda: ([(Image.new('L', (8, 8)), 0)] * 3, [(Image.new('L', (8, 8)), 0)])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "two classes or more; lonely:made has only '0'" in refused(DataError, name="lonely:made")


# Images: what a file is, and what is said of it; None where it is read.


def noise(size=(40, 40)):
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def png(width, height, *chunks):
    """A gray PNG without any pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    made = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def cut(suffix):
    def make(path):
        noise((200, 200)).save(path.with_suffix(suffix))
        content = path.with_suffix(suffix).read_bytes()
        path.write_bytes(content[: len(content) // 2])

    return make


def pages(path):
    noise().save(path, "TIFF", save_all=True, append_images=[noise((8, 8))] * 20)


def frames(path):
    noise().save(path, "WEBP", save_all=True, append_images=[noise()] * 2, lossless=True)


def long_text(path):
    info = PngInfo()
    info.add_text("a", "x" * 3_000_000, zip=True)
    noise().save(path, "PNG", pnginfo=info)


def tiled(path, side):
    """A TIFF of 8 x 8 pixels in one tile of `side` x `side`."""
    tile = zlib.compress(bytes(64))
    entries = [
        (256, 8),
        (257, 8),
        (258, 8),
        (259, 8),
        (262, 1),
        (277, 1),
        (322, side),
        (323, side),
        (324, 138),
        (325, len(tile)),
    ]
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + fields + bytes(4 + 4) + tile)


def sparse(path, start, size):
    path.write_bytes(start)
    os.truncate(path, size)


def two_frames(path):
    """A JPEG of 20,000 x 20,000 pixels; who takes its RST0 for a segment with a length finds one of 64 x 64."""

    def frame(side):
        return b"\xff\xc0" + struct.pack(">HBHHBBBB", 11, 8, side, side, 1, 1, 0x11, 0)

    start = b"\xff\xd8\xff\xd0" + frame(20_000)
    filling = 2 + 2 + 0xFFC0 - len(start) - 4
    comment = bytes(filling) + frame(64) + bytes(20)
    path.write_bytes(start + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment)


def scans(path):
    noise().save(path, "JPEG", progressive=True)
    start, _, scan = path.read_bytes().removesuffix(b"\xff\xd9").rpartition(b"\xff\xda")
    path.write_bytes(start + 501 * (b"\xff\xda" + scan) + b"\xff\xd9")


def run_lengths(path, side):
    """A gray BMP whose rows are a run of one pixel each."""
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, 0, 0, 0, 256, 0)
    data = b"\1\1\0\0" * side + b"\0\1"
    path.write_bytes(b"BM" + struct.pack("<IHHI", 1078 + len(data), 0, 0, 1078) + header + bytes(1024) + data)


def test_an_image_of_one_wide_row_is_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (1, 2_500_000), dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    made = decode(tmp_path / "a.png", 3).numpy()
    assert (made == np.rint(pixels / 257)).all()


def test_an_image_is_turned_without_writing_its_exif_anew(tmp_path, monkeypatch):
    """Of 20 MB that takes 9 s."""
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (4, 8)).save(tmp_path / "a.png", exif=exif)
    written = []
    monkeypatch.setattr(Image.Exif, "tobytes", lambda *args: written.append(args) or b"")
    assert decode(tmp_path / "a.png", 3).shape == (3, 4, 8)
    assert not written


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(b""), "no image format"),
        (lambda path: path.write_bytes(b"\xff\xd8\xff"), "cannot read the image"),
        (cut(".jpg"), "truncated"),
        (cut(".png"), "truncated"),
        (cut(".webp"), "cannot read the image"),
        (cut(".gif"), "cannot read the image"),
        (lambda path: path.write_bytes(png(20_000, 20_000)), "it has more than 178,956,970 pixels"),
        (lambda path: path.write_bytes(png(2**31 - 1, 2**31 - 1)), "it has more than 178,956,970 pixels"),
        (
            lambda path: path.write_bytes(b"\xff\xd8" + b"\xff\xc0\0\x0b\x08\xff\xff\xff\xff\x01\x01\x11\0"),
            "178,956,970",
        ),
        (two_frames, "178,956,970"),
        (scans, "it has 51[0-9] scans; at most 500 are read"),
        (lambda path: run_lengths(path, 3200), "a run-length coded BMP of 10,240,000 numbers; at most"),
        (
            lambda path: path.write_bytes(b"P3 1001 1000 255 " + b"1 " * 9),
            "a PPM in plain text of 3,003,000 numbers; at",
        ),
        (lambda path: path.write_bytes(b"P2 4 4 255 " + b"#\n" * 500_000 + b"1 " * 16), "more than 10,000 comments"),
        (lambda path: path.write_bytes(b"P2 40 40 255 " + b"#\n" * 9_000 + b"1 " * 1600), None),
        (lambda path: path.write_bytes(png(12_000, 12_000)), "it has 12,000 x 12,000 pixels, which take"),
        (lambda path: path.write_bytes(png(97_000_000, 1)), "it has 97,000,000 x 1 pixels, which take"),
        (lambda path: tiled(path, 20_000), "it has 8 x 8 pixels, which take"),
        (lambda path: sparse(path, b"RIFF\0\0\0\x70WEBPVP8 ", 1_500_000_000), "it has 1,500,000,000 bytes; at most"),
        (lambda path: sparse(path, b"\xff\xd8\xff\xe0", 150_000_000), "no image"),
        (lambda path: path.write_bytes(b"\xff\xd8" + b"\xff\xfe\0\2" * 200_000), "no image"),
        (lambda path: path.write_bytes(b"\xff\xd8" + b"\xff" * 200_000), "no image"),
        (long_text, None),
        (lambda path: noise().save(path, "PNG", icc_profile=bytes(3_000_000)), None),
        (lambda path: Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(path, "TIFF"), "float pixels"),
        (lambda path: run_lengths(path, 40), None),
        (pages, None),
        (frames, None),
        (lambda path: noise().save(path, "JPEG", icc_profile=b"no profile"), None),
        (lambda path: noise().save(path, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), None),
    ],
)
def test_an_image_is_read_or_refused_by_name(tmp_path, make, words, monkeypatch):
    path = tmp_path / "some image"
    make(path)
    if words is None:
        assert decode(path, 3).shape == (3, 40, 40)
        return
    if "178,956,970" in words or "which take" in words:  # nothing is taken for the pixels
        monkeypatch.setattr(ImageFile.ImageFile, "load", None)
        monkeypatch.setattr("lrtrain.data.jpeg._decoder", lambda: pytest.fail)
    with pytest.raises(DataError, match=words) as caught:
        decode(path, 3)
    assert str(path) in caught.value.problems[0].what
    assert caught.value.problems[0].hint


def test_a_hundred_million_pixels_are_an_image(tmp_path):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", 1).shape == (1, 10_000, 10_000)


def test_every_extension_of_an_image_promises_a_content():
    assert set(_PROMISED) == IMAGE_SUFFIXES


@pytest.mark.skipif(sys.platform != "linux", reason="leases are Linux's")
def test_an_image_that_another_process_has_a_lease_on_is_waited_for(tmp_path):
    """As file servers have, until somebody else wants the file."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    script = """
import fcntl, os, signal, sys
file = os.open(sys.argv[1], os.O_RDWR)
signal.signal(signal.SIGIO, lambda *_: fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK))
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("leased", flush=True)
signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", script, tmp_path / "a.png"], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"leased\n"
            assert decode(tmp_path / "a.png", 3).shape == (3, 8, 8)
        finally:
            holder.kill()
