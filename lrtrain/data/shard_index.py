"""What lies where in tar files: found in one pass over their headers, and kept in a file for later runs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from lrtrain.data.disk_cache import cache_folder, completed, locked
from lrtrain.data.files import IMAGE_SUFFIXES
from lrtrain.data.folders import MOST_NESTED, is_litter
from lrtrain.data.shards import Shard, Texts
from lrtrain.errors import EnvironmentFault, Problem, quoted
from lrtrain.foreign import opened, refuse_holes

_FORMAT = 3  # goes up when what `_samples` takes for a sample, an image or a label changes
_LABEL_BYTES = 2**20  # more is no label
_BLOCK = 512  # bytes: tar files consist of these
_EXTENDING = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_EXTENDING_BYTES = 2**20
_MOST_GLOBAL = 100  # fields for all members that follow, which tarfile goes through for each; writers have one or two
_MOST_IN_NAME = 4_096  # characters: of a path that a file system takes
_LENGTH, _DIGITS = re.compile(rb"([1-9][0-9]{0,6}) "), re.compile(rb"[0-9]{257}")
_MOST_WRONG = 1_000  # members or samples, after which no more are looked for
_META = re.compile(r"__[^/]*__($|/)")  # passed over, as by webdataset's tar_file_iterator
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
_AGAIN = "restore the file, or write the shard again"
_WHOLE = "write the shard with the file itself in it"
_ANEW = "the index of the shards is made anew at every start"


class _Wrong(Exception):
    """A tar file is not what it must be."""

    def __init__(self, what: str, hint: str):
        super().__init__(what)
        self.hint = hint


def indexed(paths: Sequence[str]) -> tuple[dict[str, Shard], list[Problem], str]:
    """The shards by path, what is wrong with those that cannot be used, and a note where an index could not be kept.

    Args:
        paths: absolute.
    """
    found = {path: shard for path in paths if (shard := _loaded(path)) is not None}
    missing = [path for path in paths if path not in found]
    problems: list[Problem] = []
    if not missing:
        return found, problems, ""
    with ExitStack() as stack:
        unkept = _begin_keeping(stack)
        total = sum(os.path.getsize(path) for path in missing)
        bar = stack.enter_context(
            tqdm(total=total, desc="indexing shards", unit="B", unit_scale=True, disable=None, delay=1, leave=False)
        )
        for path in missing:
            shard = _loaded(path)  # another process may have made it meanwhile
            if shard is None:
                file = None if unkept else index_file(path)
                shard, wrong = scanned(path, bar)
                problems += wrong
                if shard is not None and file is not None:
                    unkept = _keep(shard, file)
            if shard is not None:
                found[path] = shard
    return found, problems, unkept


def _begin_keeping(stack: ExitStack) -> str:
    """Let one process index while others wait for it; a note where that cannot be."""
    try:
        folder = cache_folder() / "shards"
    except EnvironmentFault as error:
        return f"{_ANEW}: {error.problems[0].what}"
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(stat.S_IMODE(folder.parent.stat().st_mode))  # who shares the one shares the other
        stack.enter_context(locked(folder / "index"))
        # By one that was killed, since nobody else holds the lock. Others may keep files here too.
        for abandoned in folder.glob(f"{'[0-9a-f]' * 32}.partial"):
            abandoned.unlink(missing_ok=True)
    except OSError as error:
        return _unkept(folder, error)
    return ""


def _unkept(folder: Path, error: OSError) -> str:
    return f"{_ANEW}, since {folder} cannot be written: {error.strerror or error}"


def index_file(path: str) -> Path:
    """Where the index of a shard belongs: another file for a shard that was written anew, whatever its mtime says.

    Raises:
        EnvironmentFault: the cache's folder is not known.
        OSError: the shard is not there.
    """
    found = os.stat(path)
    made_for = f"{_FORMAT}\0{path}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ctime_ns}"
    digest = hashlib.sha256(made_for.encode("utf-8", "surrogateescape")).hexdigest()
    return cache_folder() / "shards" / f"{digest[:32]}.npz"


def _keep(shard: Shard, file: Path) -> str:
    """Write an index; a note where that cannot be."""
    try:
        with completed(file) as out:
            np.savez(
                out,
                stat=np.array([shard.size, shard.mtime_ns, shard.passed_over], dtype=np.int64),
                members=shard.members.content,
                member_ends=shard.members.ends,
                offsets=shard.offsets,
                sizes=shard.sizes,
                labels=shard.labels.content,
                label_ends=shard.labels.ends,
                label_of=shard.label_of,
            )
    except OSError as error:
        return _unkept(file.parent, error)
    return ""


def _loaded(path: str) -> Shard | None:
    """The index that is kept of a shard; None where there is none, or a damaged one, which is made again."""
    try:
        with opened(index_file(path), links=True) as content, np.load(content, allow_pickle=False) as held:
            if sum(part.file_size for part in held.zip.infolist()) > os.fstat(content.fileno()).st_size:
                return None  # compressed, which ours are not: it may take any memory
            members, labels = (Texts(held[f"{name}s"], held[f"{name}_ends"]) for name in ("member", "label"))
            size, mtime_ns, passed_over = held["stat"].tolist()
            offsets, sizes, label_of = held["offsets"], held["sizes"], held["label_of"]
        now = os.stat(path)
    except Exception:  # a damaged file raises BadZipFile, KeyError, ValueError, zlib.error ...
        return None
    if (size, mtime_ns) != (now.st_size, now.st_mtime_ns):  # the shard was written anew just before it was indexed
        return None
    shard = Shard(path, size, mtime_ns, members, offsets, sizes, labels, label_of, passed_over)
    return shard if _is_whole(shard) else None


def _is_whole(shard: Shard) -> bool:
    """Whether what an index says fits together and into its shard."""
    texts, n = (shard.members, shard.labels), len(shard.members)
    numbers = (shard.offsets, shard.sizes, shard.label_of, *(text.ends for text in texts))
    if any(array.dtype != np.int64 or array.ndim != 1 for array in numbers):
        return False
    if any(text.content.dtype != np.uint8 or text.content.ndim != 1 or not len(text) for text in texts):
        return False
    if not all(len(array) == n for array in (shard.offsets, shard.sizes, shard.label_of)):
        return False
    return bool(
        all(text.ends[0] >= 0 and text.ends[-1] == len(text.content) for text in texts)
        and all((text.ends[:-1] <= text.ends[1:]).all() for text in texts)
        and ((shard.offsets >= 0) & (shard.offsets <= shard.size)).all()
        and ((shard.sizes >= 0) & (shard.sizes <= shard.size - shard.offsets)).all()
        and ((shard.label_of >= 0) & (shard.label_of < len(shard.labels))).all()
        and isinstance(shard.passed_over, int)
        and shard.passed_over >= 0
    )


def scanned(path: str, bar: Any) -> tuple[Shard | None, list[Problem]]:
    """Index a tar file, or say everything that is wrong with it.

    Args:
        path: absolute.
        bar: tqdm's, told of the bytes that are behind.
    """
    from webdataset.tariterators import group_by_keys

    problems: list[Problem] = []
    try:
        with opened(Path(path), links=True) as file:
            refuse_holes(file)
            before = os.fstat(file.fileno())
            members = _Members(path, file, bar, problems)

            def twice(error: Exception) -> bool:
                problems.append(
                    Problem(f"{path}:{members.latest} is the second of that kind in its sample", hint=_AGAIN)
                )
                return True

            samples = _samples(path, file, group_by_keys(members, handler=twice), problems)
            after = os.fstat(file.fileno())
    except _Wrong as error:
        return None, [*problems, Problem(str(error), hint=error.hint)]
    except Exception as error:  # damaged headers raise TarError, ValueError, OverflowError ...
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return None, [*problems, Problem(f"cannot read the shard {path}: {why}", hint=_AGAIN)]
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        problems.append(Problem(f"{path} changed while it was indexed", hint="start again when it is complete"))
    if not samples and not problems:
        problems.append(Problem(f"{path} has no samples", hint="leave it out"))
    if problems:
        return None, problems
    names = {label: i for i, label in enumerate(dict.fromkeys(label for *_, label in samples))}
    offsets, sizes = (np.array([sample[k] for sample in samples], dtype=np.int64) for k in (1, 2))
    label_of = np.array([names[label] for *_, label in samples], dtype=np.int64)
    texts = Texts.of(sample[0] for sample in samples)
    stat = (before.st_size, before.st_mtime_ns)
    return Shard(path, *stat, texts, offsets, sizes, Texts.of(names), label_of, members.passed_over), []


class _Header(tarfile.TarInfo):
    """A member's header; one that only holds a longer name or further fields is read as a whole, so it has an end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        found = super().frombuf(buf, encoding, errors)
        if found.size < 0:
            raise _Wrong("a member of the shard has a size below 0", _AGAIN)
        if found.type in _EXTENDING and found.size > _EXTENDING_BYTES:
            raise _Wrong(f"a header of the shard has {found.size:,} bytes, more than any name", _AGAIN)
        return found

    def _proc_pax(self, tar: tarfile.TarFile) -> _Header:
        file = tar.fileobj
        start = file.tell()
        content = file.read(self.size)
        file.seek(start)
        if not _is_list_of_fields(content):
            raise _Wrong(f"{tar.name!s} has a header of further fields that is damaged", _AGAIN)
        found: _Header = super()._proc_pax(tar)  # type: ignore[misc]
        return found

    # The two kinds of sparse members whose maps, which tarfile reads as a whole, have no end.
    def _proc_sparse(self, tar: tarfile.TarFile) -> _Header:
        raise _Wrong(f"{tar.name!s}:{self.name} is sparse", _WHOLE)

    def _proc_gnusparse_10(self, member: _Header, fields: object, tar: tarfile.TarFile) -> None:
        raise _Wrong(f"{tar.name!s}:{member.name} is sparse", _WHOLE)


def _is_list_of_fields(content: bytes) -> bool:
    """Whether a pax header is `LENGTH NAME=VALUE` line by line: tarfile looks through all else again and again."""
    if _DIGITS.search(content):
        return False
    at = 0
    while at < len(content) and content[at]:
        length = _LENGTH.match(content, at)
        end = at + int(length[1]) if length else 0
        if not length or not length.end() < content.find(b"=", length.end(), end) or content[end - 1 : end] != b"\n":
            return False
        at = end
    return True


class _Members:
    """The files in a tar file as `group_by_keys` takes them, with their place as data instead of their content."""

    def __init__(self, path: str, file: IO[bytes], bar: Any, problems: list[Problem]):
        self.path, self._file, self._bar, self._problems = path, file, bar, problems
        self.latest, self.passed_over = "", 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        from webdataset.tariterators import base_plus_ext

        self._refuse_compressed()
        behind = 0
        with tarfile.open(self.path, "r:", self._file, tarinfo=_Header) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else they fill the memory; webdataset does it too
                self.latest = name = member.name
                if len(tar.pax_headers) > _MOST_GLOBAL:
                    raise _Wrong(f"{self.path} has {len(tar.pax_headers):,} fields for all of its members", _AGAIN)
                if member.size < 0 or tar.offset <= behind:  # else the same member would come again without end
                    raise _Wrong(f"{self.path} is damaged at byte {member.offset:,}: a size below 0", _AGAIN)
                if len(name) > _MOST_IN_NAME or name.count("/") > MOST_NESTED:  # n * m for webdataset's pattern
                    what = f"{self.path} has a member {quoted(name)}: {len(name):,} characters, {name.count('/'):,} `/`"
                    raise _Wrong(what, f"write it anew: at most {_MOST_IN_NAME:,} and {MOST_NESTED} are read")
                if len(self._problems) > _MOST_WRONG:
                    raise _Wrong(f"{self.path}: after byte {member.offset:,} no more members are looked at", _AGAIN)
                if self._is_taken(member, base_plus_ext(name)[0]):
                    place = (name, member.offset_data, member.size)
                    yield {"fname": name, "data": place, "__url__": self.path}
                self._bar.update(tar.offset - behind)
                behind = tar.offset
            self._refuse_early_end(tar.offset)

    def _is_taken(self, member: tarfile.TarInfo, key: str | None) -> bool:
        if member.isdir():
            return False
        if key is None or _META.match(member.name) or is_litter(os.path.basename(member.name)):
            self.passed_over += 1
            return False
        if not member.isreg() or member.issparse():
            kind = (
                "sparse" if member.issparse() else "a link" if member.issym() or member.islnk() else "no regular file"
            )
            self._problems.append(Problem(f"{self.path}:{member.name} is {kind}", hint=_WHOLE))
            return False
        return True

    def _refuse_compressed(self) -> None:
        start = self._file.read(8)
        self._file.seek(0)
        for magic, kind in _COMPRESSED.items():
            if start.startswith(magic):
                raise _Wrong(
                    f"{self.path} is compressed ({kind}), and cannot be read at random",
                    "decompress it to a plain .tar; images hardly shrink by a second compression",
                )

    def _refuse_early_end(self, at: int) -> None:
        """Of a damaged or missing header tarfile says nothing but that the file ends there."""
        self._file.seek(at)
        end = self._file.read(_BLOCK)
        if len(end) < _BLOCK or any(end):
            what = "is cut off" if len(end) < _BLOCK else "is damaged"
            raise _Wrong(f"{self.path} {what} at byte {at:,}: there is neither a member nor the end's mark", _AGAIN)
        while rest := self._file.read(2**20):
            if any(rest):
                raise _Wrong(
                    f"{self.path} goes on after the mark of its end at byte {at:,}, as tar files do that were "
                    "put together by cat",
                    "list the parts as shards of their own, or write the shard again",
                )


def _samples(
    path: str, file: IO[bytes], groups: Iterator[dict[str, Any]], problems: list[Problem]
) -> list[tuple[str, int, int, str]]:
    """(member, offset, bytes, label) of each sample's image; what is wrong with samples is added to `problems`."""
    found: list[tuple[str, int, int, str]] = []
    keys: set[str] = set()
    for group in groups:
        key = group.pop("__key__")
        parts = {suffix: place for suffix, place in group.items() if not suffix.startswith("__")}
        images = [place for suffix, place in parts.items() if f".{suffix}" in IMAGE_SUFFIXES]
        sample = f"sample {key!r} in {path}"
        if key in keys:
            what = f"{sample} is there twice, or its members do not follow each other"
            problems.append(Problem(what, hint="write the shard again, each key once"))
            continue
        keys.add(key)
        if len(images) != 1:
            problems.append(_not_one_image(sample, parts, len(images)))
            continue
        try:
            found.append((*images[0], _label(sample, file, parts)))
        except _Wrong as error:
            problems.append(Problem(str(error), hint=error.hint))
    return found


def _not_one_image(sample: str, parts: dict[str, Any], images: int) -> Problem:
    endings = ", ".join(f".{suffix}" for suffix in list(parts)[:6])
    if images:
        return Problem(f"{sample} has {images} images; its members end in {endings}", hint="keep one of them")
    return Problem(
        f"{sample} has no image; its members end in {endings}",
        hint="a key ends at the first dot of the name, and an image is KEY.jpg, .jpeg, .png, .webp, .ppm ...",
    )


def _label(sample: str, file: IO[bytes], parts: dict[str, tuple[str, int, int]]) -> str:
    """The text of `.cls`, or without that, the integer or text that `.json` has as `label` or `cls`."""
    suffix = next((suffix for suffix in ("cls", "json") if suffix in parts), None)
    if suffix is None:
        raise _Wrong(f"{sample} has no label", "it is the text of KEY.cls, or `label` or `cls` in KEY.json")
    _, offset, size = parts[suffix]
    if size > _LABEL_BYTES:
        raise _Wrong(f"{sample}: .{suffix} has {size:,} bytes, which is no label", _AGAIN)
    content = os.pread(file.fileno(), size, offset)  # it leaves tarfile's place in the file alone
    try:
        text = content.decode("utf-8-sig")
        label = _json_label(json.loads(text, object_pairs_hook=_Fields)) if suffix == "json" else text.strip()
        label.encode("utf-8")  # JSON can spell half a character
    except (ValueError, RecursionError) as error:
        raise _Wrong(f"{sample}: .{suffix} cannot be read: {error}", _AGAIN) from error
    if len(label.splitlines()) != 1 or "\0" in label:
        raise _Wrong(f"{sample}: .{suffix} must hold a number or a name, not {label[:80]!r}", _AGAIN)
    return str(int(label)) if is_number(label) else label  # 007 is 7


class _Fields(dict[str, Any]):
    """A JSON object that knows which of its names are given twice: json takes the last one, and others the first."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        names = Counter(name for name, _ in pairs if name in ("label", "cls"))
        self.twice = sorted(name for name, count in names.items() if count > 1)


def _json_label(data: Any) -> str:
    if isinstance(data, _Fields) and data.twice:
        raise ValueError(f"it has `{data.twice[0]}` twice")
    found = [data[field] for field in ("label", "cls") if field in data] if isinstance(data, dict) else []
    if not found:
        raise ValueError("it has no field `label` or `cls`")
    if isinstance(found[0], bool) or not isinstance(found[0], int | str):
        raise ValueError(f"the label must be an integer or a text, not {found[0]!r:.80}")
    if str(found[0]) != str(found[-1]):
        raise ValueError(f"`label` {found[0]!r:.40} and `cls` {found[1]!r:.40} contradict each other")
    return str(found[0]).strip()


def is_number(label: str) -> bool:
    """Whether a label is a number from 0."""
    return re.fullmatch(r"[0-9]{1,18}", label) is not None
