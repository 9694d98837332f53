"""Configs that are wrong, damaged or hostile: each is refused with a clear error, in bounded time and memory."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from lrtrain import lookup
from lrtrain.config import yaml
from lrtrain.errors import ConfigError
from tests.conftest import Ended
from tests.hostile import Typed, assert_clear

GOOD = {
    "epochs": "10",
    "batch_size": "8",
    "model": "small_cnn",
    "dataset": "digits",
    "optimizer": "{name: SGD, lr: 0.1, momentum: 0.9}",
    "schedule": "{name: StepLR, step_size: 3ep}",
}
LONG = "a" * 5000

# what is wrong, the file's bytes, words of the error
FILES: list[tuple[str, bytes, tuple[str, ...]]] = [
    ("C03 empty", b"", ("the config is empty", "c.yaml", "lrtrain init")),
    ("C03 only comments", b"# nothing\n# here\n", ("the config is empty",)),
    ("C04 Latin-1", "name: é".encode("latin-1"), ("not UTF-8 text: byte 6 is 0xe9", "save it as UTF-8")),
    ("C04 UTF-16", "epochs: 1".encode("utf-16"), ("byte 0 is 0xff",)),
    ("C04 a NUL byte", b"epochs: 1\0", ("a NUL byte at offset 9",)),
    ("an image", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), ("byte 0 is 0x89", "the right file")),
    ("C05 a tab", b"model:\n\tname: resnet18\n", ("c.yaml:2", "spaces, not tabs")),
    ("C06 an open bracket", b"model: {name: resnet18\n", ("not YAML", "every bracket must be closed")),
    ("C06 an open quote", b'model: "resnet18\n', ("not YAML", "close the quotes")),
    ("an escape in double quotes", b'model: "^fc\\."\n', ("unknown escape", "single quotes", "c.yaml:1")),
    ("a colon in text", b"model: a: b\n", ("c.yaml:1", "needs quotes")),
    ("indentation that does not fit", b"model:\n  name: x\n stem: small\n", ("c.yaml:3", "indentation")),
    ("C09 a key twice", b"epochs: 1\nepochs: 2\n", ("'epochs' is given twice, on line 1 and on line 2", "keep one")),
    ("two documents", b"a: 1\n---\nb: 2\n", ("not YAML", "one document")),
    ("a list", b"- a\n- b\n", ("must be a mapping of keys; got ['a', 'b']",)),
    ("text", b"lr:1", ("must be a mapping of keys; got 'lr:1'",)),
    ("a number", b"17", ("must be a mapping",)),
    (
        "C29 a tag that runs",
        b"a: !!python/object/apply:os.system [touch canary]",
        ("tags are not allowed", "os.system"),
    ),
    ("C29 a tag that makes", b"a: !!python/name:os.system x", ("tags are not allowed",)),
    ("another tag", b"a: !x 1", ("tags are not allowed",)),
    ("a tag of YAML's own", b"seed: !!str 7", ("tags are not allowed", "2002:str")),
    ("a tag that says nothing", b"seed: ! 7", ("tags are not allowed",)),
    ("a tag of a list for a mapping", b"dataset: !!seq {name: digits}", ("tags are not allowed", "2002:seq")),
    ("a key with a tag", b"!!str seed: 7", ("a key must be plain text",)),
    ("C30 an alias of itself", b"a: &a [*a]", ("aliases (*name) are not allowed", "write the value out")),
    ("C31 an alias bomb", b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]", ("aliases",)),
    ("a merge key", b"a: {x: 1}\n<<: {b: 1}\n", ("a key must be plain text",)),
    ("C32 nested 10,000 deep", b"a: " + b"[" * 10_000, ("nested more than 20 deep",)),
    ("mappings nested 10,000 deep", b"a: " + b"{a: " * 10_000, ("nested more than 20 deep",)),
    ("400,000 values", b"a: [" + b"1," * 400_000 + b"]", ("more than 20,000 values",)),
    ("blank lines without end", b"\n" * 999_000, ("999,000 lines; at most 50,000",)),
    ("directives without end", b"%A\n" * 300_000, ("300,000 lines; at most 50,000",)),
    ("more than a megabyte", b"# " + b"x" * 1_000_000, ("at most 1,000,000",)),
    ("an escape beyond Unicode", b'a: "\\UFFFFFFFF"', ("an escape names no character",)),
    ("half a surrogate pair", b'a: "\\ud800"', ("text cannot hold the character",)),
    ("NUL in text", b'a: "x\\0y"', ("text cannot hold the character '\\x00'",)),
    ("NUL in a key", b'"a\\0b": 1', ("a key must be plain text",)),
    ("a control character", b"a: \x07", ("unacceptable character",)),
    ("a key that is a list", b"? [a]\n: 1", ("a key must be plain text",)),
    ("a byte order mark alone", "\ufeff".encode(), ("the config is empty",)),
    ("a directive", b"%YAML 9.9\n---\na: 1\n", ("not YAML",)),
]

# what is wrong, the key, its value (None: absent), words of the error
VALUES: list[tuple[str, str, str | None, tuple[str, ...]]] = [
    ("C10 a misspelt key", "learning_rat", "0.1", ("'learning_rat'", "c.yaml:7")),
    ("C10 a misspelt key with a guess", "precison", "bf16", ("did you mean 'precision'",)),
    ("C11 the wrong section", "momentum", "0.9", ("write it as optimizer.momentum",)),
    ("C11 a key with a dot", "optimizer.weight_decay", "1e-2", ("c.yaml:7 optimizer.weight_decay", "in its place write `weight_decay: 0.01` inside `optimizer`, or type --set optimizer.weight_decay=0.01")),
    ("C11 a key with a dot in a section that is left out", "checkpoint.keep", "3", ("`keep: 3` inside `checkpoint`", "--set checkpoint.keep=3")),
    ("C11 a key with a dot for a switch", "dataset.download", "true", ("`download: true` inside `dataset`",)),
    ("C11 a key with two dots for a list", "dataset.transforms.train", "[RandomHorizontalFlip]", ("`train: ...` inside `dataset.transforms`",)),
    ("C11 a key with a dot in what holds none", "epochs.x", "1", ("did you mean 'epochs'?",)),
    ("C12 no batch_size", "batch_size", None, ("batch_size is required", "such as batch_size: 128")),
    ("C12 no model", "model", None, ("model is required", "such as model: resnet18")),
    ("C12 no length", "epochs", None, ("the run has no length", "epochs: 30")),
    ("C13 nothing", "batch_size", "", ("batch_size has no value",)),
    ("C13 null", "model", "null", ("model has no value",)),
    ("C14 quotes", "optimizer", '{name: SGD, lr: "1e-3"}', ("the quotes make it text: write 1e-3",)),
    ("C15 a decimal comma", "optimizer", '{name: SGD, lr: "0,001"}', ("the decimal sign is a point: 0.001",)),
    ("C16 underscores", "batch_size", "1_0", ("the text '1_0'", "write 10")),
    ("C17 infinite", "optimizer", "{name: SGD, lr: .inf}", ("optimizer.lr must be a finite number; got inf",)),
    ("C17 beyond a float", "optimizer", "{name: SGD, lr: 1.0e+400}", ("a finite number; got inf",)),
    ("C17 not a number", "optimizer", "{name: SGD, lr: .nan}", ("a finite number; got nan",)),
    ("C17 infinite in a list of a list", "dataset", "{name: 'own:data', sizes: {a: [[.inf]]}}", ("sizes must be a finite number; got inf",)),
    ("C18 negative", "optimizer", "{name: SGD, lr: -0.1}", ("must be greater than 0", "-0.1", "such as lr: 0.1")),
    ("C18 zero", "optimizer", "{name: SGD, lr: 0}", ("must be greater than 0",)),
    ("C19 beyond 1000", "optimizer", "{name: SGD, lr: 1001}", ("at most 1000", "1001")),
    ("C20 no epoch", "epochs", "0", ("greater than 0; got 0", "such as epochs: 30")),
    ("C20 less than none", "epochs", "-1", ("got -1",)),
    ("C20 a part of one", "epochs", "2.5", ("a whole number; got 2.5",)),
    ("C20 true", "epochs", "true", ("a whole number; got True",)),
    ("C21 no image", "batch_size", "0", ("greater than 0",)),
    ("C21 too many", "batch_size", "1000000000", ("at most 1000000",)),
    ("C21 text", "batch_size", '"32"', ("the quotes make it text: write 32",)),
    ("C22 warm-up", "schedule", "{name: CosineAnnealingLR, warmup: 20ep}", ("20ep", "10 epochs")),
    ("C23 unsorted", "schedule", "{name: MultiStepLR, milestones: [6ep, 3ep]}", ("3ep comes after 6ep",)),
    ("C23 repeated", "schedule", "{name: MultiStepLR, milestones: [3ep, 3ep]}", ("must rise",)),
    ("C23 beyond the end", "schedule", "{name: MultiStepLR, milestones: [3ep, 12ep]}", ("12 epochs",)),
    ("C24 a schedule", "schedule", "CosineLR", ("there is no scheduler 'CosineLR'", "lrtrain list schedules")),
    ("C24 an optimizer", "optimizer", "{name: Sgd, lr: 0.1}", ("did you mean 'SGD'",)),
    ("C24 a model", "model", "resnet81", ("did you mean 'resnet18'",)),
    ("C24 a dataset", "dataset", "nothing", ("lrtrain list datasets",)),
    ("C25 floor above peak", "schedule", "{name: CosineAnnealingLR, eta_min: 0.5}", ("0.5",)),
    ("C26 momentum", "optimizer", "{name: SGD, lr: 0.1, momentum: 1.5}", ("at least 0 and less than 1; got 1.5",)),
    ("C26 betas", "optimizer", "{name: AdamW, lr: 0.1, betas: [0.9, 1.0]}", ("less than 1; got 1.0",)),
    ("C26 one beta", "optimizer", "{name: AdamW, lr: 0.1, betas: [0.9]}", ("betas must be two numbers",)),
    ("C26 smoothing", "label_smoothing", "1", ("less than 1",)),
    ("C26 ema", "ema", "1.5", ("less than 1", "such as ema: 0.999")),
    ("C26 mix-up that float32 cannot draw", "mixup", "1e-320", ("mixup must be at least 0.01", "such as mixup: 0.2")),
    ("C26 CutMix that always halves", "cutmix", "0.001", ("cutmix must be at least 0.01",)),
    ("C26 CutMix beyond float32", "cutmix", "1e39", ("cutmix must be at most 1000",)),
    ("C28 a seed of 2**64", "seed", str(2**64), ("seed", str(2**64))),
    ("C28 a negative seed", "seed", "-1", ("at least 0",)),
    ("C28 a seed in words", "seed", "x", ("a whole number; got the text 'x'",)),
    ("C33 plateau first", "schedule", "[{name: ReduceLROnPlateau, for: 5ep}, {name: fixed}]", ("must be the last",)),
    ("C33 accumulate", "accumulate", "3", ("accumulate: 3 does not divide batch_size: 8",)),
    ("C33 two lengths", "steps", "100", ("keep one of them",)),
    ("C33 two weights", "model", "{name: resnet18, pretrained: true, weights: w.pth}", ("keep one of them",)),
    ("C35 a word of YAML 1.1", "compile", "yes", ("compile cannot be 'yes'", "write true")),
    ("C35 such a word for a switch of the optimizer's", "optimizer", "{name: SGD, lr: 0.1, fused: no}", ("c.yaml:5 optimizer.fused", "fused must be true or false; got the text 'no'", "such as fused: false")),
    ("C35 such a word for another", "optimizer", "{name: Adam, lr: 0.1, foreach: off}", ("foreach must be true or false; got the text 'off'", "such as foreach: false")),
    ("C13 null for a switch of the optimizer's", "optimizer", "{name: SGD, lr: 0.1, nesterov: null}", ("nesterov must be true or false; got null", "leave it out: it is false then")),
    ("C13 null for a number of the optimizer's", "optimizer", "{name: SGD, lr: 0.1, weight_decay: null}", ("c.yaml:5 optimizer.weight_decay", "must be a number; got null", "hint write 0")),
    ("C35 a word for a number of the optimizer's", "optimizer", "{name: AdamW, lr: 0.1, eps: off}", ("eps must be a number; got the text 'off'", "leave it out: it is 1e-08 then")),
    ("C14 quotes in the optimizer", "optimizer", '{name: SGD, lr: 0.1, weight_decay: "1e-4"}', ("must be a number", "write 1e-4 without them")),
    ("C13 null in a group", "optimizer", "{name: SGD, lr: 0.1, weight_decay: 5e-4, groups: [{params: fc, weight_decay: null}]}", ("c.yaml:5 optimizer.groups[0].weight_decay", "must be a number; got null", "hint write 0")),
    ("C13 null in a group of what is wrong for all", "optimizer", "{name: SGD, lr: 0.1, momentum: true, groups: [{params: fc, momentum: null}]}", ("got true", "momentum must be a number; got null", "it is 0 then")),
    ("C35 a word for a switch in a group", "optimizer", "{name: SGD, lr: 0.1, groups: [{params: fc, nesterov: no}]}", ("nesterov must be true or false; got the text 'no'",)),
    ("C26 betas in words", "optimizer", "{name: AdamW, lr: 0.1, betas: [off, 0.9]}", ("betas must be two numbers; got ['off', 0.9]",)),
    ("C36 from a newer version", "format_version", "7", ("there is no key 'format_version'",)),
    ("a whole number of 300 digits", "batch_size", "9" * 300, ("batch_size",)),
    ("a whole number of 240 digits", "epochs", "9" * 240, ("at most 1000000",)),
    ("a weight decay of 240 digits", "optimizer", "{name: SGD, lr: 0.1, momentum: " + "9" * 240 + "}", ("less than 1",)),
    ("hexadecimal without end", "seed", "0x" + "f" * 300, ("seed",)),
    ("a step size of 240 digits", "schedule", "{name: StepLR, step_size: " + "9" * 240 + "}", ("no unit",)),
    ("a step size of 240 digits, every step", "schedule", "{name: StepLR, every: step, step_size: " + "9" * 240 + "}", ("at most 1,000,000,000",)),
    ("an endless duration", "eval_every", "9" * 5000 + "ep", ("eval_every",)),
    ("a duration of trillions", "eval_every", "999999999999999ep", ("eval_every",)),
    ("no duration", "eval_every", ".inf", ("a duration",)),
    ("digits of another script", "eval_every", "٣ep", ("eval_every",)),
    ("a long key", LONG, "1", ("there is no key", "...")),
    ("a long name", "model", LONG, ("there is no model", "...")),
    ("a long device", "device", LONG, ("device must be auto, cpu, cuda",)),
    ("a long word", "precision", LONG, ("bf16", "...")),
    ("an escape sequence in a name", "model", '"\\e[31mred\\u202e"', ("\\x1b[31mred\\u202e",)),
    ("an escape sequence in a key", '"\\e[2J"', "1", ("\\x1b[2J",)),
    ("mark-up in a name", "model", '"[/bold]"', ("[/bold]",)),
    ("a number for a name", "model", "{name: 3}", ("model.name must be text; got 3", "put it in quotes")),
    ("a list for a name", "optimizer", "[1, 2]", ("optimizer must be a mapping",)),
    ("a mapping for a number", "epochs", "{a: 1}", ("epochs must be a whole number",)),
    ("a formula that imports", "schedule", _formula := '{name: LambdaLR, every: step, lr_lambda: "__import__(1)"}', ("can call only",)),
    ("a formula with attributes", "schedule", _formula.replace("__import__(1)", "t.__class__"), ("Attribute",)),
    ("a formula without end", "schedule", _formula.replace("__import__(1)", "1+" * 5000), ("at most 500 characters",)),
    ("a formula nested deep", "schedule", _formula.replace("__import__(1)", "-" * 400 + "1"), ("nested at most 60 deep",)),
    *(
        (f"a formula that Python warns of: {text}", "schedule", _formula.replace("__import__(1)", text), ("is not a formula of t",))
        for text in ("1if t < 3 else 2", "0x1for t", "0.1or 1")
    ),
    ("a formula that is no text", "schedule", "{name: LambdaLR, every: step, lr_lambda: [[1]]}", ("a formula of t is text",)),
    ("a pattern of groups that is none", "optimizer", '{name: SGD, lr: 0.1, groups: [{params: "("}]}', ("groups[0]",)),
    ("a group of two LRs", "optimizer", "{name: SGD, lr: 1, groups: [{params: x, lr: 1, lr_scale: 2}]}", ("contradict",)),
    ("import path of os.system", "model", "os:system", ("os:system",)),
    ("import path of nothing", "model", "no.such.module:net", ("cannot import 'no.such.module:net'", "PYTHONPATH")),
    ("timm that loads", "model", "{name: timm/test_efficientnet, checkpoint_path: w.pth}", ("checkpoint_path",)),
    ("chains that nest", "schedule", "{name: ChainedScheduler, schedulers: [ChainedScheduler]}", ("do not nest",)),
]  # fmt: skip


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Typed:
    monkeypatch.chdir(tmp_path)
    return Typed(monkeypatch, capfd)


@pytest.mark.parametrize(("content", "words"), [row[1:] for row in FILES], ids=[row[0] for row in FILES])
def test_a_file_that_is_no_config_is_refused(
    typed: Typed, tmp_path: Path, content: bytes, words: tuple[str, ...]
) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    assert_clear(typed("fit", "c.yaml"), 2, "c.yaml", *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yaml"]


@pytest.mark.parametrize(("key", "value", "words"), [row[1:] for row in VALUES], ids=[row[0] for row in VALUES])
def test_a_value_that_cannot_be_is_refused(
    typed: Typed, tmp_path: Path, key: str, value: str | None, words: tuple[str, ...]
) -> None:
    if "timm/" in (value or ""):
        pytest.importorskip("timm")
    lines = {**GOOD, key: value} if value is not None else {k: v for k, v in GOOD.items() if k != key}
    lines = {"? " + k if len(k) > 1000 else k: v for k, v in lines.items()}
    text = "".join(f"{k}\n: {v}\n" if k.startswith("? ") else f"{k}: {v}\n" for k, v in lines.items())
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    assert_clear(typed("fit", "c.yaml"), 2, "c.yaml", *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yaml"]


def test_all_errors_come_at_once_and_many_are_cut_short(typed: Typed, tmp_path: Path) -> None:
    good = "".join(f"{k}: {v}\n" for k, v in GOOD.items())
    (tmp_path / "c.yaml").write_text(good + "precison: bf16\nema: 3\nseed: -1\n")
    ended = typed("fit", "c.yaml")
    assert_clear(ended, 2, "c.yaml:7 precison", "c.yaml:8 ema", "c.yaml:9 seed")
    (tmp_path / "c.yaml").write_text(good + "".join(f"unknown_{i}: 1\n" for i in range(9_000)))
    ended = typed("fit", "c.yaml")
    assert_clear(ended, 2, "there is no key 'unknown_0'", "and 8,950 problems more")


def test_a_name_that_is_no_file_is_refused(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "cifar.yaml").write_text("a: 1")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "circle.yaml").symlink_to("circle.yaml")
    assert_clear(typed("fit", "cifer.yaml"), 2, "there is no config file 'cifer.yaml'", "did you mean 'cifar.yaml'?")
    assert_clear(typed("fit", "nothing"), 2, "there is no config file 'nothing'", "lrtrain init")
    assert_clear(typed("fit", "folder"), 2, "'folder' is a folder", "name the YAML file in it")
    assert_clear(typed("fit", "pipe.yaml"), 2, "the config is empty")
    assert_clear(typed("fit", "circle.yaml"), 2, "cannot be read")
    assert_clear(typed("fit", "cifar.yaml/x"), 2, "cifar.yaml/x")
    assert_clear(typed("fit", "x" * 300), 2, "cannot be read")
    assert_clear(typed("fit", "/dev/zero"), 2, "at most 1,000,000")


def test_a_file_of_a_gigabyte_is_not_read(typed: Typed, tmp_path: Path) -> None:
    with (tmp_path / "c.yaml").open("wb") as file:
        file.truncate(10**9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_clear(typed("fit", "c.yaml"), 2, "at most 1,000,000")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in ["ab", "bc", "cd"]),
        "a: &a [*a, *a]",
    ],
    ids=["bomb", "circle"],
)  # fmt: skip
def test_a_bomb_is_refused_at_once(text: str) -> None:
    with pytest.raises(ConfigError):
        yaml.parse(text, "x")


def test_a_path_in_a_config_is_literal_except_for_the_home_folder(typed: Typed, tmp_path: Path) -> None:
    """C34."""
    root = "dataset: {name: imagefolder, root: '%s'}\n"
    good = "".join(f"{k}: {v}\n" for k, v in GOOD.items() if k != "dataset")
    for path, words in (
        ("${HOME}", "${HOME}"),
        ("$HOME/x", "$HOME/x"),
        ("~/no-such", str(Path.home())),
        ("../no", "../no"),
    ):
        (tmp_path / "c.yaml").write_text(good + root % path)
        assert_clear(typed("fit", "c.yaml"), 3, words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: !!python/object/apply:os.system [touch canary]", "tags are not allowed"),
        (b"[" * 10_000, "nested more than 20 deep"),
        (b"epochs: 0\nbatch_size: 8\n", "epochs must be greater than 0"),
        (b'model: "\\e[31m"', "model"),
    ],
)
def test_the_same_holds_for_a_real_process(
    lrtrain: Callable[..., Ended], tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    ended = lrtrain("fit", "c.yaml")
    assert_clear(ended, 2, words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yaml"]


@pytest.mark.parametrize(
    "text",
    [
        "dataset: {name: digits, transforms: {train: [" + ", ".join(f"RandomCrapp{i}" for i in range(9000)) + "]}}",
        "dataset: digits\n" + "\n".join(f"precison{i}: 1" for i in range(9000)),
        "dataset: digits\nschedule: [" + ", ".join(f"StepLRR{i}" for i in range(9000)) + "]",
    ],
    ids=["transforms", "keys", "phases"],
)
def test_what_was_meant_is_guessed_only_where_it_is_shown(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    compared = []
    closest = lookup.closest
    monkeypatch.setattr(lookup, "closest", lambda word, known: compared.append(word) or closest(word, known))
    good = "epochs: 1\nbatch_size: 8\nmodel: small_cnn\noptimizer: {name: SGD, lr: 0.1}\n"
    (tmp_path / "c.yaml").write_text(good + text)
    ended = typed("fit", "c.yaml")
    assert_clear(ended, 2, "problems more", "did you mean")
    assert len(compared) <= 100
