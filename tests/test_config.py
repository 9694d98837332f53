"""A YAML file becomes a config, or one error that lists everything that is wrong with it."""

from __future__ import annotations

import ast
import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lrtrain import lookup
from lrtrain.config import yaml
from lrtrain.config.duration import PATTERN, Duration
from lrtrain.config.load import load, resolve
from lrtrain.config.schema import RunConfig
from lrtrain.data.transforms import build_steps
from lrtrain.errors import ConfigError

GOOD = """
epochs: 3
batch_size: 32
model: small_cnn
dataset: digits
optimizer: {name: SGD, lr: 1e-1, momentum: 0.9}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E-3", 0.001),
        ("1.0e3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1e+2", -100.0),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("+7", 7),
        ("true", True),
        ("no", "no"),
        ("off", "off"),
        ("~", None),
        ("", None),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("0,001", "0,001"),
        ("10%", "10%"),
        ("5ep", "5ep"),
        (".inf", math.inf),
        ("1e400", math.inf),
        ("e3", "e3"),
        ("-", "-"),
        (".", "."),
    ],
)
def test_plain_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    found = yaml.scalar(text)
    assert found == value
    assert type(found) is type(value)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)  # which no text can hold
    | st.sampled_from(["1e-3", "no", "0x10", "12:30", "5ep", "~", "true", "- a", "a: b", "#", "=", "<<"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "lr", "no", "1e3"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(plain.filter(lambda value: value is not None))
@example("a\x85b")
@example("\u2028")
def test_what_is_dumped_reads_back_as_the_same_data(value: Any) -> None:
    again = yaml.parse(yaml.dump(value), "x").data
    assert again == value
    assert repr(again) == repr(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", "given twice, on line 1 and on line 2"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: &a [*a]", "aliases"),
        ("a: !!python/object/apply:os.system [ls]", "tags are not allowed"),
        ("a:\n\tb: 1", "tabs"),
        ("a: [1, 2", "every bracket must be closed"),
        ("d: {train: a-{0..3}.tar}", "needs quotes"),
        ("a: 'x", "not YAML"),
        ("", "empty"),
        ("# only a comment\n", "empty"),
        ("a: " + "[" * 50 + "]" * 50, "deep"),
        ("[" * 5000, "deep"),
        ("a: 1\n---\nb: 2", "not YAML"),
        ("? [a]\n: 1", "plain text"),
        ("<<: {a: 1}", "plain text"),
        ("x" * 1_000_001, "at most 1,000,000"),
    ],
)
def test_yaml_that_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        yaml.parse(text, "x.yaml")


def test_an_error_names_file_line_and_key(tmp_path: Path) -> None:
    path = written(
        tmp_path, GOOD + "schedule:\n  - {name: LinearLR, for: 1ep}\n  - name: CosineAnnealingLR\n    Tmax: 2ep\n"
    )
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert [problem.where for problem in caught.value.problems] == [f"{path}:10  schedule[1].Tmax"]
    assert str(caught.value).startswith("error: CosineAnnealingLR has no argument 'Tmax'\n  at   ")
    assert "did you mean 'T_max'? When absent it is the phase's length" in str(caught.value)


def test_all_errors_of_a_file_are_reported_together_in_its_order(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
epochs: 0
batch_size: "64"
model: resnet81
dataset: {name: imagefolder, rot: x}
optimizer: {name: SGD, lr: "1e-3", momentun: 0.9}
schedule: {name: StepLR, step_size: 30}
precison: bf16
""",
    )
    with pytest.raises(ConfigError) as caught:
        load(path)
    whats = [problem.what for problem in caught.value.problems]
    expected = [
        "epochs must be",
        "batch_size must be",
        "'resnet81'",
        "'rot'",
        "optimizer.lr must be",
        "'momentun'",
        "step_size",
        "'precison'",
    ]
    found = [next((i for i, what in enumerate(whats) if words in what), None) for words in expected]
    assert None not in found
    assert found == sorted(found)


def test_set_overrides_any_key_and_is_named_in_errors(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    config = load(
        path,
        [
            "optimizer.lr=5e-2",
            "model.stem=standard",
            "early_stop.patience=3",
            "schedule={name: StepLR, step_size: 1ep}",
            "schedule.gamma=0.5",
        ],
    )
    assert config.optimizer.lr == 0.05
    assert config.early_stop is not None
    assert config.early_stop.patience == 3
    assert config.schedule[0].args == {"step_size": "1ep", "gamma": 0.5}
    with pytest.raises(ConfigError) as caught:
        load(path, ["optimizer.lr=fast"])
    assert caught.value.problems[0].where == "--set optimizer.lr=fast"


@pytest.mark.parametrize(
    "override", ["optimizer.lr", "=3", "schedule.4.name=StepLR", "epochs.x.y=1", "optimizer.groups.0=1"]
)
def test_set_that_cannot_be_applied_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError):
        load(written(tmp_path, GOOD), [override])


def test_a_config_reads_back_from_its_own_dump(tmp_path: Path) -> None:
    config = load(written(tmp_path, GOOD + "schedule: {name: CosineAnnealingLR, warmup: 10%}\nema: 0.999\n"))
    again = load(written(tmp_path, yaml.dump(config.dump())))
    assert again.dump() == config.dump()


def test_an_argument_that_is_null_reads_back_from_the_dump(tmp_path: Path) -> None:
    keys = ("model={name: 'm:net', size: null}", "optimizer={name: SGD, lr: 0.1, foreach: null}")
    config = load(written(tmp_path, GOOD), keys)
    again = load(written(tmp_path, yaml.dump(config.dump())))
    assert again.model.args == {"size": None}
    assert again.optimizer.args == {"foreach": None}
    assert "ema" not in config.dump()


def test_what_is_done_to_an_argument_is_not_done_to_the_config(tmp_path: Path) -> None:
    """As by a network that takes what it needs off a dict that it is given: resume would build another one."""
    keys = ("model={name: 'm:net', head: {drop: 0.1}}", "schedule={name: 'm:s', every: step, at: [1, 2]}")
    config = load(written(tmp_path, GOOD), keys)
    before = config.dump()
    config.model.args["head"].pop("drop")
    config.schedule[0].args["at"].pop()
    assert config.dump() == before
    entry = {"name": "tests.nets:Popping", "sizes": [1, 2]}
    build_steps([entry], ["here"])
    assert entry == {"name": "tests.nets:Popping", "sizes": [1, 2]}


@given(st.from_regex(PATTERN, fullmatch=True))
@example("16.666666666666%")
@example("0.00009%")
@example("999999999999.000000000001ep")
def test_a_duration_reads_back_exactly(text: str) -> None:
    try:
        read = Duration.parse(text)
    except ValueError:
        assert text.endswith("step")
        return
    assert Duration.parse(str(read)) == read


def test_a_config_is_frozen(tmp_path: Path) -> None:
    config = load(written(tmp_path, GOOD))
    with pytest.raises(ValueError, match="frozen"):
        config.epochs = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("seed: 18446744073709551616", "seed"),
        ("seed: -1", "at least 0"),
        ("epochs: 2.5", "whole number"),
        ("epochs: true", "whole number"),
        ("batch_size: 0", "greater than 0"),
        ("label_smoothing: 1", "less than 1"),
        ("ema: 1.5", "less than 1"),
        ("device: gpu", "cuda"),
        ("precision: fp8", "bf16"),
        ("steps: 100", "keep one"),
        ("accumulate: 5", "does not divide"),
        ("eval_every: 2", "no unit"),
        ("eval_every: 2 epochs", "2ep"),
        ("checkpoint: {best: val_acc}", "val_acc1"),
        ("early_stop: {patience: 0}", "at least 1"),
        ("lr: 0.1", "optimizer.lr"),
        ("scheduler: {name: StepLR}", "schedule"),
        ("num_workers: 2", "workers"),
    ],
)
def test_values_that_are_refused_say_what_is_allowed(tmp_path: Path, line: str, words: str) -> None:
    key = line.split(":")[0]
    good = "\n".join(old for old in GOOD.splitlines() if not old.startswith(f"{key}:"))
    with pytest.raises(ConfigError, match=words):
        load(written(tmp_path, f"{good}\n{line}\n"))


@given(st.integers(0, 10**6), st.integers(1, 5000), st.integers(1, 10**6))
def test_durations_become_steps_once(value: int, steps_per_epoch: int, total: int) -> None:
    assert Duration.parse(f"{value}ep").to_steps(steps_per_epoch, total) == value * steps_per_epoch
    assert Duration.parse(f"{value}step").to_steps(steps_per_epoch, total) == value
    assert Duration.parse("100%").to_steps(steps_per_epoch, total) == total
    assert str(Duration.parse(f"{value}ep")) == f"{value}ep"


def test_fractions_of_a_step_round_half_up() -> None:
    assert Duration.parse("0.5ep").to_steps(5, 100) == 3
    assert Duration.parse("2.5%").to_steps(1, 100) == 3
    assert Duration.parse("3.3ep").to_steps(10, 100) == 33


def test_the_json_schema_accepts_every_shipped_config_and_refuses_mistakes() -> None:
    import jsonschema

    from lrtrain.commands.schema import config_schema

    validator = jsonschema.Draft202012Validator(config_schema())
    for path in sorted((Path(__file__).parents[1] / "configs").glob("*.yaml")):
        validator.validate(yaml.parse(path.read_text(), path.name).data)
    good = yaml.parse(GOOD, "x").data
    validator.validate(good)
    for wrong in (
        {"epochs": "3"},
        {"precison": "bf16"},
        {"model": "resnet81"},
        {"optimizer": {"name": "SGD"}},
        {"eval_every": "2 epochs"},
        {"schedule": [{"name": "StepLr"}]},
    ):
        assert not validator.is_valid({**good, **wrong}), wrong


def test_the_quickstart_is_what_init_writes() -> None:
    root = Path(__file__).parents[1]
    quickstart = (root / "configs" / "quickstart.yaml").read_text()
    assert (root / "lrtrain" / "config" / "example.yaml").read_text() == quickstart
    assert RunConfig.model_validate(yaml.parse(quickstart, "x").data)


@pytest.mark.parametrize("kind", ["model", "optimizer", "scheduler", "dataset", "transform"])
def test_definitions_found_by_their_lines_are_those_that_parsing_finds(kind: lookup.Kind) -> None:
    home = lookup._HOMES[kind]
    parsed = {
        node.name: isinstance(node, ast.ClassDef)
        for path in sorted(lookup._folder(home.package).glob(home.files))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    found = {name: definition.is_class for name, definition in lookup._definitions(home.package, home.files).items()}
    assert {name: is_class for name, is_class in found.items() if name in lookup.names(kind)} == {
        name: is_class for name, is_class in parsed.items() if name in lookup.names(kind)
    }
    assert found.keys() >= parsed.keys()


def test_the_models_found_by_their_lines_are_those_that_torchvision_registers() -> None:
    torchvision = pytest.importorskip("torchvision")
    registered = set(torchvision.models.list_models(module=torchvision.models))
    assert registered == set(lookup._theirs("model"))


@pytest.mark.parametrize(
    "override",
    [
        "optimizer={name: ASGD, lr: 0.1, alpha: 1.0}",
        'optimizer={name: "own:make", lr: 0.1, momentum: 2, note: "3"}',
        'model={name: "own:net", width: "64", weight_decay: -1}',
        "dataset.transforms={train: [{name: ElasticTransform, alpha: 50.0}]}",
        'dataset={name: INaturalist, root: ".", version: "2018", val_fraction: 0.1}',
        'dataset={name: csv, manifest: "1", skip_list: "2"}',
    ],
)
def test_a_number_is_held_against_what_takes_it(tmp_path: Path, override: str) -> None:
    load(written(tmp_path, GOOD), [override])


@pytest.mark.parametrize("name", lookup.names("optimizer"))
def test_an_optimizer_takes_what_torch_says_and_no_other_kind(name: str) -> None:
    def problems(key: str, value: Any) -> int:
        data = yaml.parse(GOOD, "a.yaml").data | {"optimizer": {"name": name, "lr": 0.1, key: value}}
        try:
            resolve(yaml.Document("a.yaml", data))
        except ConfigError as error:
            return len(error.problems)
        return 0

    for key, parameter in inspect.signature(getattr(torch.optim, name)).parameters.items():
        if key in ("params", "lr"):
            continue
        default, kind = parameter.default, str(parameter.annotation)
        switch, number = "bool" in kind, type(default) in (int, float)
        taken = [list(default) if isinstance(default, tuple) else default]
        taken += [False, *[True] * (key not in ("maximize", "differentiable"))] if switch else [0, 0.5] * number
        assert not any(problems(key, value) for value in taken), key
        if switch or number:
            others = ["no", "0", [0], [True], *[None] * ("None" not in kind)]
            assert all(problems(key, value) == 1 for value in others), key


def test_what_is_replaced_by_set_has_no_line_any_more(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    with pytest.raises(ConfigError) as caught:
        load(path, ["optimizer={name: SGD, lr: 0.1, momentum: 5}"])
    assert caught.value.problems[0].where == "--set optimizer={name: SGD, lr: 0.1, momentum: 5}"
    with pytest.raises(ConfigError, match="schedule has no value"):
        load(path, ["schedule="])
