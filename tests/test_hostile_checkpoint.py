"""Checkpoints that are damaged, of another run, or hostile: none is loaded, none takes long."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrtrain.checkpoint import format
from lrtrain.errors import CheckpointError
from lrtrain.lookup import names
from lrtrain.tensor_header import MAX_HEADER, MAX_TENSORS
from tests import forked
from tests.hostile import Typed, assert_clear

CONFIG = """steps: 4
batch_size: 96
model: {name: small_cnn, width: 4}
dataset: digits
optimizer: {name: SGD, lr: 0.05, momentum: 0.9}
precision: fp32
ema: 0.9
workers: 0
"""
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose only checkpoint is its last, at step 4."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "c.yaml").write_text(CONFIG)
    env = forked.environment(OMP_NUM_THREADS=str(torch.get_num_threads()))
    forked.run(["fit", "c.yaml", "--out", "run"], folder, env).check_returncode()
    for step in (folder / "run" / "checkpoints").glob("step-0000000[0-3]"):
        shutil.rmtree(step)
    return folder


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, trained: Path) -> Typed:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Typed(monkeypatch, capfd)


def manifest_of(step: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((step / "manifest.json").read_text())
    return content


def rewrite(step: Path, text: str | None = None, /, **fields: Any) -> None:
    """The manifest with other fields (... removes one), and the files' digests and its own as they should be."""
    content = manifest_of(step) | fields
    content = {key: value for key, value in content.items() if value is not ... and key != "sha256"}
    for name in content["files"] if isinstance(content.get("files"), dict) and "files" not in fields else ():
        data = (step / name).read_bytes()
        content["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (step / "manifest.json").write_text(text or json.dumps({**content, "sha256": digest}))


def tensors(part: str, **changes: Any) -> Change:
    """Other tensors in a part, or none where ... is given, with digests that fit."""

    def change(step: Path) -> None:
        file = step / f"{part}.safetensors"
        found = load_file(file) | {name.replace("__", "."): value for name, value in changes.items()}
        save_file({name: value for name, value in found.items() if value is not ...}, file)
        rewrite(step)

    return change


def fields(**changes: Any) -> Change:
    return lambda step: rewrite(step, **changes)


def text(content: str | bytes) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return lambda step: (step / "manifest.json").write_bytes(data)


def file_of(part: str, edit: Callable[[bytes], bytes], *, fits: bool = False) -> Change:
    """Other bytes in a part; with digests that fit where `fits`."""

    def change(step: Path) -> None:
        file = step / f"{part}.safetensors"
        file.write_bytes(edit(file.read_bytes()))
        if fits:
            rewrite(step)

    return change


def header(edit: Callable[[dict[str, Any]], object]) -> Change:
    """Another safetensors header, with digests that fit."""

    def edited(data: bytes) -> bytes:
        (length,) = struct.unpack("<Q", data[:8])
        content = json.loads(data[8 : 8 + length])
        edit(content)
        made = json.dumps(content).encode()
        return struct.pack("<Q", len(made)) + made + data[8 + length :]

    return file_of("model", edited, fits=True)


def flipped(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


def linked(name: str) -> Change:
    def change(step: Path) -> None:
        (step / name).rename(step.parent / "moved")
        (step / name).symlink_to(step.parent / "moved")

    return change


def whole_directory_linked(step: Path) -> None:
    step.rename(step.parents[2] / "moved")
    step.symlink_to(step.parents[2] / "moved")


def sparse(step: Path) -> None:
    """Ten gigabytes of zeros that a header and a manifest agree on."""
    made = json.dumps({"w": {"dtype": "U8", "shape": [10**10], "data_offsets": [0, 10**10]}}).encode()
    with (step / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(made)) + made)
        file.truncate(8 + len(made) + 10**10)
    size = (step / "model.safetensors").stat().st_size
    rewrite(step, files={"model.safetensors": {"bytes": size, "sha256": SHA}}, ema_updates=None)


def nested(depth: int) -> dict[str, Any]:
    """A config whose model holds mappings in mappings."""
    inside: dict[str, Any] = {}
    for _ in range(depth):
        inside = {"a": inside}
    return {"steps": 4, "batch_size": 1, "model": {"name": "small_cnn", **inside}, "dataset": "digits", "optimizer": {}}


SHA = "0" * 64
BACK = {"failed": 3, "to": 2, "factor": 0.5}
NAN = float("nan")
# what is wrong, how it comes about, words of the error
CASES: list[tuple[str, Change, tuple[str, ...]]] = [
    ("K03 an empty part", file_of("model", lambda data: b""), ("model.safetensors has 0 bytes",)),
    ("K03 a part of ten gigabytes that are not there", sparse, ("model.safetensors is damaged", "a sparse file")),
    ("K03 an empty manifest", text(""), ("manifest.json cannot be read",)),
    ("K05 a bit", file_of("model", flipped), ("model.safetensors is damaged: its SHA-256",)),
    ("K05 a bit of the optimizer", file_of("optimizer", flipped), ("optimizer.safetensors is damaged",)),
    ("K05 a bit of the average", file_of("ema", flipped), ("ema.safetensors is damaged",)),
    ("cut", file_of("model", lambda data: data[:-9]), ("model.safetensors has", "the manifest says")),
    ("longer", file_of("model", lambda data: data + b"x"), ("the manifest says",)),
    ("a part that is gone", lambda step: (step / "ema.safetensors").unlink(), ("ema.safetensors cannot be read",)),
    ("a part that is a folder", lambda step: [(step / "ema.safetensors").unlink(), (step / "ema.safetensors").mkdir()],
     ("a checkpoint holds files, and 'ema.safetensors' is a folder",)),
    ("folders in folders", lambda step: (step.parent / ".tmp-00000004-17" / "a" / "b").mkdir(parents=True),
     ("a checkpoint holds files, and 'a' is a folder",)),
    ("a part that is a pipe", lambda step: [(step / "ema.safetensors").unlink(), os.mkfifo(step / "ema.safetensors")],
     ("no regular file",)),
    ("parts that changed places", lambda step: [shutil.copy(step / "ema.safetensors", step / "model.safetensors")],
     ("model.safetensors",)),
    ("K06 no manifest", lambda step: (step / "manifest.json").unlink(), ("no manifest.json",)),
    ("K06 no JSON", text("{"), ("manifest.json cannot be read",)),
    ("K06 a list", text("[]"), ("must be an object in braces",)),
    ("K06 NaN", text('{"step": NaN}'), ("NaN is no number in JSON",)),
    ("K06 infinity", text('{"step": -Infinity}'), ("-Infinity is no number in JSON",)),
    ("K06 beyond a float", text('{"step": 1e999}'), ("1e999 is no number in JSON",)),
    ("K06 a key twice", text('{"step": 1, "step": 2}'), ("'step' is given twice",)),
    ("K06 no UTF-8", text(b'{"a": "\xff"}'), ("it is not UTF-8 text",)),
    ("K06 nested deep", text("[" * 100_000), ("it is nested too deep",)),
    ("K06 objects nested deep", text('{"a":' * 900 + "1" + "}" * 900), ("manifest.json",)),
    ("K06 a config nested deep", fields(config=nested(200)), ("config: it is nested more than 20",)),
    ("K06 a config of digits", fields(config={"batch_size": 10**400}), ("config: it has a whole number of more than",)),
    ("K06 a config without end", fields(config={"schedule": ["a"] * 500_000}), ("it has more than 20,000 values",)),
    ("K06 a config of keys", fields(config={f"k{i}": 1 for i in range(99_000)}), ("it has more than 20,000 values",)),
    ("K06 digits without end", text('{"step": ' + "9" * 10_000 + "}"), ("manifest.json cannot be read",)),
    ("K06 10 MB", text('{"a": "' + "x" * 10_000_000 + '"}'), ("it is longer than 8,000,000 bytes",)),
    ("K06 a digest that is not its own", lambda step: rewrite(step, json.dumps(manifest_of(step) | {"step": 5})),
     ("its SHA-256 is not its own",)),
    ("K07 a newer format", fields(version=2), ("has format 2; this lrtrain reads 1",)),
    ("K07 a format in words", fields(version="x" * 200), ("has format 'xxx", "...")),
    ("another step than its name", fields(step=5), ("step 5 lies in 'step-00000004'",)),
    ("a negative step", fields(step=-4), ("step: Input should be greater than or equal to 0; got -4",)),
    ("a step of 10**300", fields(step=10**300), ("step: Input should be less than or equal to",)),
    ("half a step", fields(step=4.5), ("step",)),
    ("true steps", fields(step=True), ("step",)),
    ("no step", fields(step=...), ("step: Field required",)),
    ("no files", fields(files=...), ("files: Field required",)),
    ("files as a list", fields(files=["model.safetensors"]), ("files: Input should be",)),
    ("files without sizes", fields(files={"model.safetensors": None}), ("files.model.safetensors",)),
    ("files of negative size", fields(files={"model.safetensors": {"bytes": -1, "sha256": SHA}}), ("bytes",)),
    ("files with half a digest", fields(files={"model.safetensors": {"bytes": 1, "sha256": "0"}}), ("sha256",)),
    ("no part at all", fields(files={}, ema_updates=None), ("has no",)),
    *(
        (f"K17 {name!r:.30}", fields(files={name: {"bytes": 1, "sha256": SHA}}), ("files cannot have the name",))
        for name in ("../../x", "/etc/passwd", "a/b.safetensors", "x.pkl", "..", "\x1b[31m.safetensors", "A" * 300, "")
    ),
    ("K18 a link to a part", linked("model.safetensors"), ("symbolic link",)),
    ("K18 a link to a manifest", linked("manifest.json"), ("symbolic link",)),
    ("K18 a link to a checkpoint", whole_directory_linked, ("symbolic link",)),
    ("K08 another shape", tensors("model", fc__bias=torch.zeros(11)), ("'fc.bias': float32 11", "float32 10 in this run")),
    ("K08 another type", tensors("model", fc__bias=torch.zeros(10, dtype=torch.float64)), ("float64 10",)),
    ("K10 a tensor less", tensors("model", fc__bias=...), ("'fc.bias': missing in the checkpoint",)),
    ("K10 a tensor more", tensors("model", extra=torch.zeros(1)), ("'extra': float32 1", "missing in this run")),
    ("K10 another average", tensors("ema", extra=torch.zeros(1)), ("ema.safetensors", "'extra'")),
    ("K12 NaN", tensors("model", fc__bias=torch.full((10,), NAN)), ("not finite, first in 'fc.bias'", "remove step-00000004")),
    ("K12 infinite average", tensors("ema", fc__bias=torch.full((10,), torch.inf)), ("the checkpoint's ema",)),
    ("K12 infinite momentum", tensors("optimizer", **{"fc__bias/momentum_buffer": torch.full((10,), torch.inf)}), ("optimizer",)),
    ("momentum of another shape", tensors("optimizer", **{"fc__bias/momentum_buffer": torch.zeros(1)}),
     ("'fc.bias/momentum_buffer': float32 1 in the checkpoint, float32 10 in this run",)),
    ("momentum of another type", tensors("optimizer", **{"fc__bias/momentum_buffer": torch.zeros(10).half()}), ("float16",)),
    ("momentum of no parameter", tensors("optimizer", **{"nothing/momentum_buffer": torch.zeros(1)}), ("'nothing'",)),
    ("state of another optimizer", tensors("optimizer", **{"fc__bias/exp_avg": torch.zeros(10)}), ("'fc.bias/exp_avg'",)),
    ("state without a key", tensors("optimizer", x=torch.zeros(1)), ("optimizer",)),
    ("scalars of no parameter", fields(optimizer={"nothing/step": 1}), ("'nothing'",)),
    ("scalars that are lists", fields(optimizer={"fc.bias/step": [1]}), ("optimizer.fc.bias/step",)),
    ("scalars where tensors belong", fields(optimizer={"fc.weight/step": 1}), ("'fc.weight/step': int",)),
    *(
        (f"{key} as {value!r:.30}", fields(**{key: value}), (f"manifest.json is not what lrtrain writes: {key}",))
        for key, values in {
            "pending": (1, "no", None),
            "origin": (None,),
            "optimizer_parameters": (None, -1, 1.5),
            "best": (None, [], {"value": 1}, {"value": "x", "step": 1, "stale": 0}, {"value": 1, "step": -1, "stale": 0}),
            "early": (None, "x", {"value": None, "step": 0, "stale": 0, "more": 1}),
            "loss_sums": (None, [1, 2], ["a", "b", "c"], [[1], [2], [3]]),
            "loss_images": ([1, 2], [-1, 0, 0], [1.5, 0, 0], "abc"),
            "optimizer": (None, []),
            "ema_updates": (-1, 1.5, "4", 10**20),
            "log_bytes": (None, [], {}, {"metrics.jsonl": -1}, {"metrics.jsonl": "0"}),
            "log_sha256": (None, [], {}, {"metrics.jsonl": "0"}),
            "dataset": ([1], {"train": [1]}, {"train": {"a": {}}}, {"train": {"a": {"images": -1, "sha256": ""}}}),
            "classes": ("abc", [1, 2], [None]),
            "scaler": ([], {"scale": "x"}, {"scale": -1}),
            "plateau": ([], {"best": [1]}),
        }.items()
        for value in values
    ),
    ("no state", fields(loss_sums=..., pending=...), ("the manifest lacks pending, loss_sums",)),
    ("no log", fields(log_bytes=...), ("the manifest lacks log_bytes",)),
    ("no digest of the log", fields(log_sha256=...), ("the manifest lacks log_sha256",)),
    ("a best that was not logged", fields(best={"value": 0.99, "step": 4, "stale": 0}), ("val_acc1 is 0.99 at step 4 in the manifest, and metrics.jsonl says",)),
    ("no best though there were evaluations", fields(best={"value": None, "step": 0, "stale": 0}), ("best: there is none in the manifest, and metrics.jsonl has evaluations",)),
    ("a scaler where there is none", fields(scaler={"scale": 65536.0}), ("the manifest's scaler is not this run's: there is one",)),
    ("an evaluation to come that was logged", fields(pending=True), ("pending: True, and metrics.jsonl has an evaluation",)),
    ("a parameter without its state", tensors("optimizer", **{"fc__bias/momentum_buffer": ...}), ("keeps something for", "its manifest says")),
    ("no state of any parameter", lambda step: (save_file({}, step / "optimizer.safetensors"), rewrite(step)), ("keeps something for 0 parameters",)),
    ("a count below 0", tensors("model", bn1__num_batches_tracked=torch.tensor(-5)), ("a count of batches below 0",)),
    ("a part that no run has", lambda step: ((step / "x.safetensors").write_bytes(b""), rewrite(step, files={**manifest_of(step)["files"], "x.safetensors": {"bytes": 0, "sha256": "0" * 64}})), ("files cannot have the name 'x.safetensors'",)),
    ("a best after its time", fields(best={"value": 1.0, "step": 9, "stale": 0}), ("best.step is after step 4",)),
    ("patience of more evaluations than steps", fields(early={"value": 1.0, "step": 1, "stale": 9}), ("best.stale counts",)),
    ("a step after the last", fields(total_steps=3), ("step 4 is after the last, 3",)),
    ("another length than its config's", fields(total_steps=9), ("total_steps is 9, and by its config the run has 4",)),
    ("epochs of another length", fields(steps_per_epoch=4), ("steps_per_epoch is 4, and an epoch has 15",)),
    ("no origin", fields(origin=...), ("the manifest lacks origin",)),
    ("an empty origin", fields(origin={}), ("origin.threads: Field required",)),
    ("an origin of less", fields(origin={"threads": 1, "processes": 1}), ("processor: not recorded then", "and 2 more")),
    ("an origin of lists", fields(origin={"threads": 1, "processes": 1, "device": []}), ("origin.device",)),
    ("an unknown field that is a list", fields(more=[1]), ("not what lrtrain writes: more",)),
    ("a dataset of other parts", fields(dataset={"train": {"cats": {"images": 1, "sha256": "", "more": []}}}), ("dataset.train.cats.more",)),
    ("no config", fields(config=...), ("the manifest lacks config",)),
    ("an empty config", fields(config={}), ("the manifest's config is not one",)),
    ("a config that is a list", fields(config=[]), ("config: Input should be",)),
    ("going back 100,000 times", fields(rollbacks=[BACK] * 100_000), ("rollbacks: List should have at most 3",)),
    ("going back to after its step", fields(rollbacks=[BACK | {"to": 5, "failed": 6}]), ("training",)),
    ("going forward", fields(rollbacks=[BACK | {"to": 3, "failed": 2}]), ("training can only go back",)),
    ("going back from beyond the run", fields(rollbacks=[BACK | {"failed": 900}]), ("from a step of the run",)),
    ("going back to a higher LR", fields(rollbacks=[BACK | {"factor": 2.0}]), ("rollbacks.0.factor",)),
    ("going back where the run never does", fields(rollbacks=[BACK]), ("rollbacks: this run never goes back",)),
    ("an average of fewer steps", fields(ema_updates=0), ("ema_updates: the average is updated at each of the 4 steps",)),
    ("an average of more steps", fields(ema_updates=10**15), ("ema_updates",)),
    ("more images than were seen", fields(loss_images=[10**15] * 3), ("loss_images: in 4 steps there are at most 384",)),
    ("a loss below 0", fields(loss_sums=[-1e308] * 3, loss_images=[96] * 3), ("loss_sums",)),
    ("an accuracy above 1", fields(best={"value": 7.5, "step": 4, "stale": 0}), ("best.value: no val_acc1",)),
    ("a best without evaluation", fields(best={"value": 0.5, "step": 3, "stale": 1}), ("metrics.jsonl has no evaluation then",)),
    ("patience of a run that has none", fields(early={"value": None, "step": 0, "stale": 4}), ("early: the run does not stop",)),
    ("a variance below 0", tensors("model", bn1__running_var=-torch.ones(4)), ("a variance below 0, in 'bn1.running_var'",)),
    ("an average's variance below 0", tensors("ema", bn1__running_var=-torch.ones(4)), ("the checkpoint's ema",)),
    ("an average without its count", fields(ema_updates=None), ("ema_updates: it belongs to averaged weights",)),
    ("a plateau where there is none", fields(plateau={"best": "0"}), ("ReduceLROnPlateau",)),
    ("K11 other classes", fields(classes=["a", "b"]), ("of its classes are gone: 'a', 'b'",)),
    ("K16 a header of 200 MB", file_of("model", lambda d: struct.pack("<Q", 200_000_000) + d[8:], fits=True),
     ("its header would take 200,000,000",)),
    ("K16 a header without end", file_of("model", lambda d: b"\xff" * 8 + d[8:], fits=True), ("its header would take",)),
    ("K16 a long header", file_of("model", lambda d: struct.pack("<Q", MAX_HEADER + 1) + b" " * (MAX_HEADER + 9), fits=True),
     ("at most 8,000,000 are read",)),
    ("K16 a crowd", header(lambda h: h.update({str(n): h["fc.bias"] for n in range(MAX_TENSORS)})), ("at most 50,000 are read",)),
    ("K16 a header that is no JSON", file_of("model", lambda d: d[:9] + b"x" + d[10:], fits=True), ("its header is not JSON",)),
    ("K16 a header nested deep", file_of("model", lambda d: struct.pack("<Q", 200_000) + b"[" * 200_000, fits=True), ("too deep",)),
    ("K16 no header", file_of("model", lambda d: b"x", fits=True), ("of 1 bytes",)),
    ("K16 overlapping", header(lambda h: h["fc.bias"].update(data_offsets=h["conv1.weight"]["data_offsets"])), ("fc.bias",)),
    ("K16 two at one place", header(lambda h: h.update(again=h["fc.bias"])), ("overlap or leave gaps",)),
    ("K16 a gap", header(lambda h: h.pop("fc.bias")), ("model.safetensors",)),
    ("K16 beyond the end", header(lambda h: h["fc.bias"].update(data_offsets=[10**9, 10**9 + 40])), ("overlap or leave gaps",)),
    ("K16 backwards", header(lambda h: h["fc.bias"].update(data_offsets=[40, 0])), ("does not take -40 bytes",)),
    ("K16 negative", header(lambda h: h["fc.bias"].update(data_offsets=[-40, 0])), ("lies at [-40, 0]",)),
    ("K16 an overflow", header(lambda h: h["fc.bias"].update(shape=[2**62, 2**62])), ("has the shape",)),
    ("K16 an overflow times nothing", header(lambda h: h["fc.bias"].update(shape=[0, 2**63])), ("has the shape",)),
    ("K16 a product that wraps", header(lambda h: h["fc.bias"].update(shape=[2**32, 2**32, 10])), ("has the shape",)),
    ("K16 a negative side", header(lambda h: h["fc.bias"].update(shape=[-10])), ("has the shape [-10]",)),
    ("K16 a side of true", header(lambda h: h["fc.bias"].update(shape=[True])), ("has the shape [True]",)),
    ("K16 a shape that is no list", header(lambda h: h["fc.bias"].update(shape=10)), ("has the shape 10",)),
    ("K16 many sides", header(lambda h: h["fc.bias"].update(shape=[1] * 1000)), ("has the shape",)),
    ("K16 a type of no kind", header(lambda h: h["fc.bias"].update(dtype="OBJECT")), ("is of type 'OBJECT'; allowed: BOOL",)),
    ("K16 a type that is a list", header(lambda h: h["fc.bias"].update(dtype=["F32"])), ("is of type ['F32']",)),
    ("K16 an entry that is a number", header(lambda h: h.update({"fc.bias": 1})), ("does not say dtype",)),
    ("an escape sequence in a name", header(lambda h: h.update({"\x1b[2J": h.pop("fc.bias")})), ("\\x1b[2J",)),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), [row[1:] for row in CASES], ids=[row[0] for row in CASES])
def test_a_checkpoint_that_cannot_be_gone_on_from_is_refused(
    typed: Typed, tmp_path: Path, change: Change, words: tuple[str, ...]
) -> None:
    step = tmp_path / "run" / "checkpoints" / "step-00000004"
    change(step)
    before = {path: path.stat().st_size for path in (tmp_path / "run").glob("*") if path.is_file()}
    assert_clear(typed("fit", "c.yaml", "--resume", "--out", "run"), 4, *words)
    assert {path: path.stat().st_size for path in before} == before


def test_the_whole_checkpoint_is_gone_on_from(typed: Typed) -> None:
    """What is above is refused for the change alone."""
    ended = typed("fit", "c.yaml", "--resume", "--out", "run")
    assert ended.code == 0, ended.err
    assert "already complete" in ended.out


def test_what_does_not_fit_is_never_allocated(tmp_path: Path, trained: Path) -> None:
    shutil.copytree(trained / "run" / "checkpoints" / "step-00000004", step := tmp_path / "step-00000004")
    sparse(step)
    from lrtrain.engine.state import load_module
    from lrtrain.models.small_cnn import small_cnn

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="of its tensors differ"):
        load_module(small_cnn(10, 1, 4), format.open_checkpoint(step), "model")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # KiB, of the ten million it says


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"checkpoint": "../../etc"}', '{"checkpoint": 4}', "{" * 9000, "x" * 10**6]
)
def test_a_pointer_that_points_nowhere_is_passed_over(typed: Typed, tmp_path: Path, content: str) -> None:
    for name in ("last", "best"):
        (tmp_path / "run" / "checkpoints" / f"{name}.json").write_text(content)
    assert typed("evaluate", "run").code == 0
    assert typed("fit", "c.yaml", "--resume", "--out", "run").code == 0


class Mixed(torch.optim.SGD):
    """SGD that keeps a mean in float64, which flags were ever set, and a count, as tensors."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for p in (p for group in self.param_groups for p in group["params"]):
            own = self.state[p]
            if not own:
                mean, seen = torch.zeros_like(p, dtype=torch.float64), torch.zeros_like(p, dtype=torch.bool)
                own.update(mean=mean, seen=seen, count=torch.zeros((), dtype=torch.int64))
            own["count"] += 1
            own["seen"] |= p.grad > 0
            own["mean"].lerp_(p.grad.double(), 0.3)
            p -= 0.01 * own["mean"] / own["count"]


@pytest.mark.parametrize(
    "optimizer", [*(name for name in names("optimizer") if name != "Muon"), "tests.test_hostile_checkpoint:Mixed"]
)
def test_every_optimizers_own_state_is_known(optimizer: str, tmp_path: Path) -> None:
    from lrtrain.engine.state import restore, snapshot
    from lrtrain.engine.train import train

    job = _job(optimizer)
    for _ in train(job.state, job.plan, job.batches, job.recipe):
        pass
    parts, manifest = snapshot(job.state)
    path = format.write(tmp_path, job.state.step, parts, manifest)
    again = _job(optimizer)
    restore(again.state, again.plan, format.verify(path))
    for name, tensor in job.state.model.state_dict().items():
        assert torch.equal(tensor, again.state.model.state_dict()[name])
    (kept, scalars), (kept_again, scalars_again) = (kept_by(of.state) for of in (job, again))
    assert scalars == scalars_again
    assert {name: tensor.dtype for name, tensor in kept.items()} == {n: t.dtype for n, t in kept_again.items()}
    assert all(torch.equal(tensor, kept_again[name]) for name, tensor in kept.items())


def kept_by(state: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from lrtrain.optim.kept import kept

    return kept(state.optimizer, state.parameter_names)


def _job(optimizer: str) -> Any:
    from lrtrain.build import build
    from lrtrain.config import yaml
    from lrtrain.config.load import resolve

    text = CONFIG.replace("{name: SGD, lr: 0.05, momentum: 0.9}", f"{{name: {optimizer}, lr: 0.001}}")
    return build(resolve(yaml.parse(text.replace("steps: 4", "steps: 2"), "c.yaml")))
