"""The command that a range test ends with: typed as it stands, it trains with the LR that was found."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from lrtrain.commands.range_test import settings
from lrtrain.config.load import load
from tests.hostile import Typed

CONFIG = """
steps: 40
batch_size: 8
model: {{name: small_cnn, width: 4}}
dataset: digits
optimizer: {{name: SGD, lr: 0.04, momentum: 0.9, groups: [{{params: "^fc", lr: 0.08}}, {{params: norm_and_bias}}]}}
schedule: {}
"""


@pytest.mark.parametrize(
    ("schedule", "more"),
    [
        ("fixed", ""),
        ("{name: CyclicLR, base_lr: 0.004, every: step}", "schedule.base_lr=0.001"),
        ("{name: CyclicLR, base_lr: [0.004, 0.004, 0.002], every: step}", "schedule.base_lr=[0.001, 0.001, 0.0005]"),
        ("{name: CosineAnnealingLR, eta_min: 0.002}", "schedule.eta_min=0.0005"),
        ("{name: CosineAnnealingLR, eta_min: 0}", ""),
        ("{name: OneCycleLR, max_lr: [0.4, 0.04, 0.04]}", "schedule.max_lr=[0.1, 0.01, 0.01]"),
        ("[{name: LinearLR, for: 10%}, {name: CosineAnnealingLR, eta_min: 0.004}]", "schedule.1.eta_min=0.001"),
        ("{name: ReduceLROnPlateau, min_lr: 0.0004}", "schedule.min_lr=0.0001"),
    ],
)
@pytest.mark.parametrize("lr", [0.01, 4e-5])
def test_lrs_of_groups_and_schedules_keep_their_ratio(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    schedule: str,
    more: str,
    lr: float,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(CONFIG.format(schedule))
    words = shlex.split(settings(load(Path("c.yaml")), lr))
    if lr == 0.01:
        expected = ["optimizer.lr=0.01", "optimizer.groups.0.lr=0.02", *[more] * bool(more)]
        assert words == [word for text in expected for word in ("--set", text)]
    ended = Typed(monkeypatch, capfd)("preview", "c.yaml", *words)
    assert ended.code == 0, ended.err
    assert "takes the place" not in ended.out or "OneCycleLR" in schedule


def test_an_open_lr_leaves_them_all_open(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG.format("{name: CyclicLR, base_lr: 0.004, every: step}"))
    named = settings(load(tmp_path / "c.yaml"), None)
    assert named == "--set optimizer.lr=... --set optimizer.groups.0.lr=... --set schedule.base_lr=..."
