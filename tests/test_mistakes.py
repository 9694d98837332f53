"""Mistakes that newcomers make: each ends in one error of the same shape, before anything is trained."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Ended

GOOD = """epochs: 10
batch_size: 8
model: small_cnn
dataset: digits
optimizer: {name: SGD, lr: 0.1, momentum: 0.9}
schedule: {name: StepLR, step_size: 3ep}
"""

# what is wrong, lines that replace those with the same key, exit code, words of the error, where it is
CONFIGS: list[tuple[str, str, int, str, str]] = [
    ("a wrong key", "precison: bf16", 2, "there is no key 'precison'", "precison"),
    ("learning_rate at the top", "learning_rate: 0.1", 2, "write it as optimizer.lr", "learning_rate"),
    (
        "learning_rate in the optimizer",
        "optimizer: {name: SGD, learning_rate: 0.1}",
        2,
        "did you mean 'lr'",
        "optimizer.learning_rate",
    ),
    ("lr in the wrong section", "schedule: {name: StepLR, step_size: 3ep, lr: 0.1}", 2, "optimizer.lr", "schedule.lr"),
    ("no schedule in words", "schedule: off", 2, "did you mean 'fixed'", "schedule"),
    ("a schedule as others call it", "schedule: constant", 2, "did you mean 'fixed'", "schedule"),
    (
        "a network for colours, and gray images",
        "model: {name: 'torchvision.models:resnet18'}",
        2,
        "add {name: Grayscale, num_output_channels: 3} to dataset.transforms",
        "model",
    ),
    ("mix-up in words", "mixup: off", 2, "write null", "mixup"),
    ("smoothing in words", "label_smoothing: none", 2, "write 0", "label_smoothing"),
    ("a switch in words", "cuda_graph: off", 2, "write false", "cuda_graph"),
    ("a plain switch in words", "drop_last: off", 2, "write false", "drop_last"),
    ("a plain switch that is on", "compile: yes", 2, "write true", "compile"),
    ("a switch that is on", "cuda_graph: on", 2, "allowed: auto, true, false", "cuda_graph"),
    ("momentum at the top", "momentum: 0.9", 2, "optimizer.momentum", "momentum"),
    ("lr in quotes", 'optimizer: {name: SGD, lr: "1e-3"}', 2, "the quotes make it text: write 1e-3", "optimizer.lr"),
    ("lr with a decimal comma", "optimizer: {name: SGD, lr: 0,001}", 2, "", ""),
    ("a negative lr", "optimizer: {name: SGD, lr: -0.1}", 2, "greater than 0", "optimizer.lr"),
    ("no lr", "optimizer: SGD", 2, "optimizer", "optimizer"),
    (
        "step_size without a unit",
        "schedule: {name: StepLR, step_size: 3}",
        2,
        "write 3ep or 3step",
        "schedule.step_size",
    ),
    ("gamma per what", "schedule: {name: ExponentialLR, gamma: 0.9}", 2, "every", "schedule"),
    (
        "milestones past the end",
        "schedule: {name: MultiStepLR, milestones: [3ep, 12ep]}",
        2,
        "12",
        "schedule.milestones",
    ),
    (
        "milestones out of order",
        "schedule: {name: MultiStepLR, milestones: [6ep, 3ep]}",
        2,
        "must rise",
        "schedule.milestones",
    ),
    ("warm-up longer than the run", "schedule: {name: CosineAnnealingLR, warmup: 20ep}", 2, "20", "schedule"),
    (
        "phases that do not add up",
        "schedule: [{name: LinearLR, for: 5ep}, {name: StepLR, step_size: 1ep, for: 3ep}]",
        2,
        "10",
        "schedule",
    ),
    ("Tmax", "schedule: {name: CosineAnnealingLR, Tmax: 10ep}", 2, "did you mean 'T_max'", "schedule.Tmax"),
    ("an unknown scheduler", "schedule: {name: CosineLR}", 2, "CosineAnnealingLR", "schedule"),
    (
        "a scheduler in sequence by torch's class",
        "schedule: {name: SequentialLR, schedulers: [], milestones: []}",
        2,
        "phases",
        "schedule",
    ),
    (
        "a plateau that watches nothing",
        "schedule: {name: ReduceLROnPlateau, monitor: accuracy}",
        2,
        "val_acc1",
        "schedule.monitor",
    ),
    (
        "a plateau in the middle",
        "schedule: [{name: ReduceLROnPlateau, for: 5ep}, {name: fixed, for: 5ep}]",
        2,
        "last",
        "schedule[0]",
    ),
    (
        "a plateau that minimises accuracy",
        "schedule: {name: ReduceLROnPlateau, monitor: val_acc1, mode: min}",
        2,
        "more of it is better",
        "schedule.mode",
    ),
    (
        "text for true or false",
        'model: {name: resnet18, zero_init_residual: "no"}',
        2,
        "got the text 'no'",
        "model.zero_init_residual",
    ),
    (
        "an argument of another optimizer",
        "optimizer: {name: SGD, lr: 0.1, betas: 3}",
        2,
        "no argument 'betas'",
        "betas",
    ),
    (
        "one number where there are two",
        "optimizer: {name: Rprop, lr: 0.1, etas: 0.5}",
        2,
        "such as [0.5, 1.2]",
        "optimizer.etas",
    ),
    (
        "null for two numbers",
        "optimizer: {name: Adafactor, lr: 0.1, eps: null}",
        2,
        "such as [null, 0.001]",
        "optimizer.eps",
    ),
    ("null for none", "optimizer: {name: AdamW, lr: 0.1, weight_decay: null}", 2, "write 0", "optimizer.weight_decay"),
    ("one beta", "optimizer: {name: AdamW, lr: 0.1, betas: 3}", 2, "betas must be two numbers", "optimizer.betas"),
    ("an unknown model", "model: resnet81", 2, "did you mean 'resnet18'", "model"),
    ("an unknown optimizer", "optimizer: {name: Sgd, lr: 0.1}", 2, "did you mean 'SGD'", "optimizer"),
    ("an unknown dataset", "dataset: ImageFolders", 2, "", "dataset"),
    (
        "an unknown transform",
        "dataset: {name: digits, transforms: {train: [RandomFlip]}}",
        2,
        "",
        "dataset.transforms.train[0]",
    ),
    ("both epochs and steps", "steps: 100", 2, "keep one of them", "steps"),
    ("no epochs", "epochs: 0", 2, "greater than 0", "epochs"),
    ("a monitor that is no metric", "early_stop: {monitor: accuracy}", 2, "val_acc1", "early_stop.monitor"),
    (
        "OneCycleLR of another length",
        "schedule: {name: OneCycleLR, total_steps: 5ep}",
        2,
        "total_steps",
        "schedule.total_steps",
    ),
    (
        "OneCycleLR without momentum",
        "optimizer: {name: SGD, lr: 0.1}\nschedule: {name: OneCycleLR}",
        2,
        "cycle_momentum: false",
        "schedule",
    ),
    ("a floor above the peak", "schedule: {name: CosineAnnealingLR, eta_min: 0.5}", 2, "0.5", "schedule.eta_min"),
    ("a folder that is missing", "dataset: {name: imagefolder, root: nowhere}", 3, "nowhere", "dataset.root"),
    (
        "a class without images",
        "dataset: {name: imagefolder, root: photos}|mkdir train/empty val/empty",
        3,
        "empty",
        "dataset.root",
    ),
    ("a class only in val", "dataset: {name: imagefolder, root: photos}|mv train/red away", 3, "red", "dataset.root"),
    (
        "one class",
        "dataset: {name: imagefolder, root: photos}|mv train/red away|mv val/red away2",
        3,
        "class",
        "dataset.root",
    ),
    ("no val folder", "dataset: {name: imagefolder, root: photos}|mv val away", 2, "val_fraction", "dataset"),
    (
        "a schedule for an optimizer that does not look at the LR",
        "optimizer: {name: Rprop, lr: 0.01}\nschedule: {name: CosineAnnealingLR}",
        2,
        "leave the schedule out",
        "schedule",
    ),
    (
        "going back with an optimizer that does not look at the LR",
        "optimizer: {name: 'torch.optim.rprop:Rprop', lr: 0.01}\non_nonfinite: rollback",
        2,
        "write `stop`",
        "on_nonfinite",
    ),
    (
        "an optimizer that maximises",
        "optimizer: {name: SGD, lr: 0.1, maximize: true}",
        2,
        "the loss is minimised",
        "optimizer.maximize",
    ),
    (
        "a group that maximises",
        'optimizer: {name: SGD, lr: 0.1, groups: [{params: "^fc", maximize: true}]}',
        2,
        "the loss is minimised",
        "optimizer.groups[0].maximize",
    ),
    (
        "a switch of the optimizer that is neither on nor off",
        "optimizer: {name: Adam, lr: 0.1, differentiable: null}",
        2,
        "leave it out",
        "optimizer.differentiable",
    ),
    ("cuda where there is none", "device: cuda:7", 2, "available: cpu", "device"),
    (
        "a group that matches nothing",
        'optimizer: {name: SGD, lr: 0.1, groups: [{params: "^head", lr: 1.0}]}',
        2,
        "^head",
        "optimizer.groups[0].params",
    ),
    (
        "weights that are missing",
        "model: {name: resnet18, weights: w.safetensors}",
        4,
        "w.safetensors",
        "model.weights",
    ),
    ("stem on the wrong family", "model: {name: vgg11, stem: small}", 2, "resnet", "model.stem"),
    ("an import path that leads nowhere", "model: {name: 'no.such:net'}", 2, "no.such:net", "model"),
    ("a model's argument", "model: {name: resnet18, depth: 3}", 2, "depth", "model"),
    ("a batch larger than the data", "batch_size: 5000\ndrop_last: true", 2, "1437", "batch_size"),
]


def prepared(tmp_path: Path, photos: Path, lines: str) -> Path:
    """A good config with some lines replaced, and changes made to the photos."""
    text, *changes = lines.split("|")
    for change in changes:
        verb, *paths = change.split()
        if verb == "mkdir":
            for path in paths:
                (photos / path).mkdir()
        else:
            shutil.move(photos / paths[0], tmp_path / paths[1])
    keys = [line.split(":")[0] for line in text.splitlines()]
    kept = [line for line in GOOD.splitlines() if line.split(":")[0] not in keys]
    path = tmp_path / "c.yaml"
    path.write_text("\n".join([*kept, text, ""]))
    return path


@pytest.mark.parametrize(
    ("lines", "code", "words", "place"), [row[1:] for row in CONFIGS], ids=[row[0] for row in CONFIGS]
)
def test_a_mistake_is_one_clear_error_before_any_training(
    lrtrain: Callable[..., Ended], tmp_path: Path, photos: Path, lines: str, code: int, words: str, place: str
) -> None:
    prepared(tmp_path, photos, lines)
    ended = lrtrain("fit", "c.yaml")
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    assert "bug in lrtrain" not in ended.err
    assert ended.err.startswith("error: ")
    assert re.search(r"\n  at   \S*c\.yaml", ended.err), ended.err
    assert words.replace(" ", "") in ended.err.replace(" ", "").replace("\n", ""), ended.err
    assert place in ended.err
    assert len(ended.err.splitlines()) <= 12
    if code == 2:  # one error a place
        places = [line for line in ended.err.splitlines() if line.startswith("  at ")]
        assert len(set(places)) == len(places)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["fit", "nope.yaml"], 2, "there is no config file"),
        (["fit"], 2, "lrtrain init --example"),
        (["fit", "."], 2, "is a folder"),
        (["fit", "c.yaml", "--set", "optimizer.lr"], 2, "KEY=VALUE"),
        (["fit", "c.yaml", "--sett", "a=b"], 2, "--set"),
        (["fitt", "c.yaml"], 2, "fit"),
        (["fit", "c.yaml", "--resume"], 4, "no run"),
        (["range-test", "c.yaml", "--start", "1", "--end", "0.1"], 2, "--start"),
        (["preview", "c.yaml", "--at", "3"], 2, "--at 3.5ep"),
        (["preview", "c.yaml", "--at", "99ep"], 2, "10ep"),
        (["preview", "c.yaml", "--plot", "a.gif"], 2, ".png"),
        (["preview", "c.yaml", "--csv", "no/such/a.csv"], 5, "no/such/a.csv"),
        (["evaluate", "nowhere"], 4, "config.yaml"),
        (["list", "things"], 2, "models"),
        (["init"], 2, "--example"),
    ],
)
def test_a_wrong_command_line_is_refused(
    lrtrain: Callable[..., Ended], tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    (tmp_path / "c.yaml").write_text(GOOD)
    ended = lrtrain(*arguments)
    assert ended.code == code, ended.err
    assert words in ended.err
    assert "Traceback" not in ended.err


def test_config_errors_and_help_need_neither_torch_nor_numpy(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(GOOD.replace("momentum", "momentun").replace("3ep", "3"))
    (tmp_path / "probe.py").write_text(
        "import sys\nfrom pathlib import Path\nimport lrtrain.cli\nfrom lrtrain.commands.start import start\n"
        "try:\n    start(Path('c.yaml'), [])\nexcept Exception as error:\n    print(len(error.problems))\n"
        "print(sorted({'torch', 'torchvision', 'numpy', 'matplotlib'} & sys.modules.keys()))\n"
    )
    probe = subprocess.run([sys.executable, "probe.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert probe.stdout.split("\n")[:2] == ["2", "[]"], probe.stderr
