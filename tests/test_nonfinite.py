"""A loss or gradient that is not finite changes no weight, is explained, and where asked for is gone back from."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lrtrain.build import Job
from lrtrain.checkpoint import format
from lrtrain.commands.origin import free_to_change
from lrtrain.engine.events import Event, SaveDue, Stepped, Stopped
from lrtrain.engine.finite import Gate, NotFinite, culprit
from lrtrain.engine.state import restore, snapshot
from lrtrain.engine.train import optimizer_step, train
from tests.forked import environment, run
from tests.schedules import plan_of
from tests.test_engine import job, weights
from tests.test_fit import assert_same_bits, fit, kill_when, rows, tensors
from tests.test_hostile_checkpoint import rewrite

FRAGILE = """
seed: 3
epochs: 2
batch_size: 64
model: {name: "tests.nets:fragile", limit: 0.05}
dataset: {name: digits, transforms: {train: [{name: RandomCrop, size: 8, padding: 1}]}}
optimizer: {name: SGD, lr: 0.2, momentum: 0.9}
schedule: {name: CosineAnnealingLR}
on_nonfinite: rollback
ema: 0.9
log_every: 1step
checkpoint: {every: 6step}
"""


def trained(made: Job, each: Callable[[Event], object] = lambda event: None) -> None:
    for event in train(made.state, made.plan, made.batches, made.recipe):
        each(event)


def test_an_infinite_gradient_is_found_before_the_step_and_nothing_is_updated() -> None:
    made = job(model={"name": "tests.nets:bad_gradient", "at": 3}, ema=0.9, log_every="50step")
    seen: dict[str, torch.Tensor] = {}
    with pytest.raises(NotFinite) as caught:
        trained(made, lambda event: seen.update(weights(made)))
    assert made.state.step == 2
    assert all(torch.equal(weights(made)[name], seen[name]) for name in seen if name != "calls")
    trouble = caught.value.trouble
    assert trouble.step == 3
    assert trouble.culprit == "the layers' outputs are finite, the gradient of 'body.weight' is not"
    assert trouble.loss == trouble.loss < 10
    assert trouble.index == tuple(next(iter(made.batches.train(2, 3))).index.tolist())
    assert str(trouble.gradient_norms["default"]) == "nan"


@pytest.mark.parametrize(
    ("poison", "words"),
    [
        ("weights", "the weights of 'body.weight' are not finite"),
        ("layer", "the first layer whose output is not finite is 'head' (Linear)"),
    ],
)
def test_the_first_thing_that_is_not_finite_is_named(poison: str, words: str) -> None:
    made = job(model={"name": "tests.nets:fragile", "limit": 1e30})
    model: Any = made.state.model
    with torch.no_grad():
        if poison == "weights":
            model.body.weight[0, 0] = torch.nan
        else:
            model.head.weight.fill_(3e38)
    batch = next(iter(made.batches.train(0, 1)))
    loss = optimizer_step(made.state, batch, made.recipe)
    assert loss is not None
    assert culprit(model, batch.images, torch.autocast("cpu", enabled=False)) == words


def test_a_clipped_gradient_is_looked_at_too() -> None:
    made = job(model={"name": "tests.nets:bad_gradient", "at": 1}, clip_norm=1.0)
    with pytest.raises(NotFinite):
        trained(made)
    assert made.state.step == 0


def test_weights_that_an_update_made_infinite_are_never_saved() -> None:
    made = job(model="tests.nets:linear", optimizer={"name": "SGD", "lr": 0.1}, checkpoint={"every": "1step"})
    made.state.optimizer.register_step_post_hook(lambda *_: made.state.model[1].weight.data.fill_(torch.inf))
    seen: list[Event] = []
    with pytest.raises(NotFinite, match=r"weights are not finite after the update at step 1 .*'1.weight'"):
        trained(made, seen.append)
    assert not any(isinstance(event, SaveDue) for event in seen)


def unseen(made: Job, since: int = 3) -> Job:
    """With weights of which one, that no loss depends on, is infinite after some steps."""
    made.state.model.register_buffer("unseen", torch.zeros(()))

    def poison(*_: object) -> None:
        if made.state.step + 1 >= since:
            made.state.model.unseen.fill_(torch.inf)

    made.state.optimizer.register_step_post_hook(poison)
    return made


@pytest.mark.parametrize("asked", [None, "SIGUSR2"])
def test_infinite_weights_are_refused_where_a_run_left_alone_saves_whatever_is_asked_before(asked: str | None) -> None:
    made = unseen(job(model="tests.nets:linear", eval_every="7step", checkpoint={"every": "5step"}))
    seen: list[Event] = []
    with pytest.raises(NotFinite, match="after the update at step 5 "):
        seen.extend(train(made.state, made.plan, made.batches, made.recipe, lambda: asked))
    saved = [event.step for event in seen if isinstance(event, SaveDue)]
    assert saved == ([1, 2] if asked else [])


def test_a_run_that_is_stopped_while_its_weights_are_infinite_saves_none_of_them() -> None:
    made = unseen(job(model="tests.nets:linear", eval_every="7step", checkpoint={"every": "5step"}))

    def asked() -> str | None:
        return "SIGTERM" if made.state.step >= 4 else None

    events = list(train(made.state, made.plan, made.batches, made.recipe, asked))
    assert events[-1] == Stopped(4, "SIGTERM", saved=False)
    assert not any(isinstance(event, SaveDue) for event in events)


def test_infinite_weights_are_refused_before_an_evaluation_counts_them_as_best() -> None:
    made = unseen(job(model="tests.nets:linear", eval_every="3step", checkpoint={"every": "5step"}))
    with pytest.raises(NotFinite, match="after the update at step 3 "):
        trained(made)
    assert made.state.best.value is None


def test_where_the_host_does_not_wait_the_fused_optimizer_skips_the_step_and_all_after_it() -> None:
    """The way of a GPU, whose operations the CPU has too."""
    made = job(model={"name": "tests.nets:bad_gradient", "at": 3}, log_every="5step")
    gate = Gate(made.state.optimizer, torch.device("cpu"))
    gate.waits, made.state.gate = False, gate
    kept: list[dict[str, torch.Tensor]] = []
    with pytest.raises(NotFinite, match="at step 3") as caught:
        trained(made, lambda event: kept.append(weights(made)) if isinstance(event, Stepped) else None)
    assert made.state.step == 5
    assert caught.value.trouble.step == 3
    assert all(torch.equal(kept[1][name], kept[-1][name]) for name, _ in made.state.model.named_parameters())
    assert not torch.equal(kept[0]["head.weight"], kept[1]["head.weight"])


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_that_a_schedule_has_cycled_to_0_is_no_other_optimizers(tmp_path: Path, nesterov: bool) -> None:
    cycle = {"name": "CyclicLR", "base_lr": 0.001, "step_size_up": 2, "base_momentum": 0.0, "every": "step"}
    optimizer = {"name": "SGD", "lr": 0.05, "momentum": 0.9, "nesterov": nesterov}
    made = job(steps=3, optimizer=optimizer, schedule={**cycle, "max_momentum": 0.9})
    trained(made)
    assert made.state.optimizer.param_groups[0]["momentum"] == 0
    parts, manifest = snapshot(made.state)
    assert parts["optimizer"]
    made.state.optimizer.state.clear()  # as where training goes back
    restore(made.state, made.plan, format.open_checkpoint(format.write(tmp_path, 3, parts, manifest)))
    assert snapshot(made.state)[0]["optimizer"].keys() == parts["optimizer"].keys()


def test_a_run_that_stops_leaves_a_report_and_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    ended = fit(tmp_path, FRAGILE, "--set", "on_nonfinite=stop", "--out", "run")
    assert ended.returncode == 6
    assert "the training loss is" in ended.stderr
    assert "Traceback" not in ended.stderr
    (found,) = (tmp_path / "run").glob("nonfinite-*.json")
    report = json.loads(found.read_text())
    last = json.loads((tmp_path / "run" / "checkpoints" / "last.json").read_text())["checkpoint"]
    assert f"the last good checkpoint is {last}" in ended.stderr
    assert found.name in ended.stderr
    assert report["culprit"] == "the first layer whose output is not finite is the whole _Fragile"
    assert report["step"] == rows(tmp_path / "run")[-1]["step"] + 1
    assert len(report["images"]) == 64
    assert list(report["lr"]) == list(report["gradient_norms"]) == ["default"]
    assert all(tensor.isfinite().all() for tensor in tensors(tmp_path / "run").values())
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 6)


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rolled")
    ended = fit(folder, FRAGILE, "--out", "whole")
    assert ended.returncode == 0, ended.stderr
    (folder / "stdout").write_text(ended.stdout)
    return folder


def test_rollback_goes_back_halves_the_lr_and_says_so_in_log_and_curve(rolled_back: Path) -> None:
    import csv

    run = rolled_back / "whole"
    found = [row for row in rows(run) if row["event"] == "rollback"]
    assert found
    assert "went back to step" in (rolled_back / "stdout").read_text()
    with (run / "curve.csv").open() as file:
        curve = {int(row["step"]): float(row["lr.default"]) for row in csv.DictReader(file)}
    steps = [row for row in rows(run) if row["event"] == "train"]
    assert [row["step"] for row in steps] == list(range(1, 47))
    assert [row["lr"]["default"] for row in steps] == [curve[row["step"]] for row in steps]
    planned = plan_of("{name: CosineAnnealingLR}", lrs=(0.2,), steps_per_epoch=23, length="steps: 46").curve.lr[:, 0]
    halved = [float(lr) / 2 ** sum(t >= row["step"] for row in found) for t, lr in enumerate(planned)]
    assert [row["lr"]["default"] for row in steps] == halved
    assert halved[-1] < planned[-1]
    manifest = json.loads((run / "checkpoints" / "step-00000046" / "manifest.json").read_text())
    assert [entry["to"] for entry in manifest["rollbacks"]] == [row["step"] for row in found]


def test_a_run_killed_after_going_back_resumes_to_the_same_bytes(rolled_back: Path) -> None:
    def went_on(text: str) -> bool:
        return '"rollback"' in text and text.rstrip().count("\n") > 20

    kill_when(rolled_back, FRAGILE, "killed", went_on)
    ended = fit(rolled_back, FRAGILE, "--resume", "--out", "killed")
    assert ended.returncode == 0, ended.stderr
    assert_same_bits(rolled_back / "whole", rolled_back / "killed")
    assert (rolled_back / "whole" / "curve.csv").read_bytes() == (rolled_back / "killed" / "curve.csv").read_bytes()


def test_a_run_that_is_asked_to_save_at_every_step_goes_back_to_where_one_left_alone_does(rolled_back: Path) -> None:
    (rolled_back / "c.yaml").write_text(FRAGILE)
    ended = run(["fit", "c.yaml", "--out", "asked"], rolled_back, environment(TEST_SIGNAL="SIGUSR2@"))
    assert ended.returncode == 0, ended.stderr
    assert_same_bits(rolled_back / "whole", rolled_back / "asked")
    names = [sorted(path.name for path in (rolled_back / out / "checkpoints").iterdir()) for out in ("whole", "asked")]
    assert names[0] == names[1]


def test_a_run_that_is_stopped_goes_back_to_where_one_left_alone_does(rolled_back: Path) -> None:
    first = next(row for row in rows(rolled_back / "whole") if row["event"] == "rollback")
    (rolled_back / "c.yaml").write_text(FRAGILE)
    at = environment(TEST_SIGNAL=f"SIGTERM@{first['failed'] - 1}")
    stopped = run(["fit", "c.yaml", "--out", "stopped"], rolled_back, at)
    assert stopped.returncode == 143, stopped.stderr
    assert first["step"] < first["failed"] - 1 < first["step"] + 6  # between two checkpoints that are planned
    ended = fit(rolled_back, FRAGILE, "--resume", "--out", "stopped")
    assert ended.returncode == 0, ended.stderr
    assert_same_bits(rolled_back / "whole", rolled_back / "stopped")


def test_what_a_kill_left_undeleted_is_deleted_before_training_goes_on(tmp_path: Path) -> None:
    """Else training could go back to a checkpoint that a run left alone does not have any more."""
    (tmp_path / "c.yaml").write_text(FRAGILE)
    sets = ('model={name: "tests.nets:bad_gradient", at: 99}', "on_nonfinite=stop", "checkpoint.every=3step")
    command = ["fit", "c.yaml", "--out", "run", *(word for one in sets for word in ("--set", one))]
    stopped = run(command, tmp_path, environment(TEST_SIGNAL="SIGTERM@7"))
    assert stopped.returncode == 143, stopped.stderr
    killed = run([*command, "--resume", "--set", "checkpoint.keep=1"], tmp_path, environment(TEST_SIGNAL="SIGKILL@8"))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = sorted(path.name[-1] for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert left == ["6", "7"]


def test_fp16_with_clipped_gradients_goes_back_too(tmp_path: Path) -> None:
    wide = ("--set", "precision=fp16", "--set", "clip_norm=1.0", "--set", "steps=8", "--set", "epochs=null")
    model = ("--set", "model={name: 'tests.nets:fragile', limit: 0.001}")
    ended = fit(tmp_path, FRAGILE, *wide, *model, "--out", "run")
    assert "went back to step" in ended.stdout, ended.stderr
    assert ended.returncode in (0, 6), ended.stderr


def test_a_buffer_that_is_infinite_by_design_is_trained_with_averaged_and_resumed(tmp_path: Path) -> None:
    config = FRAGILE.replace('{name: "tests.nets:fragile", limit: 0.05}', '"tests.nets:masked"')
    for out, epochs in (("whole", 2), ("again", 1)):
        ended = fit(tmp_path, config, "--set", f"epochs={epochs}", "--out", out)
        assert ended.returncode == 0, ended.stderr
    ended = fit(tmp_path, config, "--resume", "--extend", "rescale", "--out", "again")
    assert ended.returncode == 0, ended.stderr
    for part in ("model", "ema"):
        for name in ("mask", "frozen"):
            found = tensors(tmp_path / "again")[f"{part}/{name}"]
            assert found.equal(torch.full((8, 8), -torch.inf).triu(1))
    best = [row["acc1"] for row in rows(tmp_path / "whole") if row["event"] == "eval"]
    assert best[-1] > 0.5  # the average is evaluated


def assert_resumes_in_the_same_bits(folder: Path, config: str, last: int) -> None:
    """A run that is left alone, and one that lost what it saved after the step `last`."""
    for out in ("whole", "again"):
        ended = fit(folder, config, "--out", out)
        assert ended.returncode == 0, ended.stderr
    lost = [path for path in (folder / "again" / "checkpoints").glob("step-*") if int(path.name[5:]) > last]
    assert lost
    for path in lost:
        shutil.rmtree(path)
    ended = fit(folder, config, "--out", "again", "--resume")
    assert ended.returncode == 0, ended.stderr
    assert_same_bits(folder / "whole", folder / "again")


def test_a_buffer_that_is_infinite_at_first_alone_is_gone_back_to_and_averaged_alike(tmp_path: Path) -> None:
    bad = 'model={name: "tests.nets:ranged", at: 4}'
    ended = fit(tmp_path, FRAGILE, "--set", bad, "--out", "run")
    assert ended.returncode == 6  # step 4 is as bad each time
    assert "went back to step-00000000" in ended.stdout, ended.stderr
    fit(tmp_path, FRAGILE, "--set", 'model={name: "tests.nets:ranged"}', "--set", "epochs=1", "--out", "first")
    weights = next(iter((tmp_path / "first" / "checkpoints").glob("step-*[1-9]"))) / "model.safetensors"
    config = FRAGILE.replace(
        '{name: "tests.nets:fragile", limit: 0.05}', f'{{name: "tests.nets:ranged", weights: {weights}}}'
    )
    config = config.replace("every: 6step", "every: 6step, keep: 9").replace("epochs: 2", "epochs: 1")
    assert_resumes_in_the_same_bits(tmp_path, config, 6)


@pytest.mark.parametrize("net", ["folding", "recurrent", "late"])
def test_a_run_with_weights_of_which_a_network_computes_more_is_resumed(tmp_path: Path, net: str) -> None:
    config = FRAGILE.replace('{name: "tests.nets:fragile", limit: 0.05}', f'{{name: "tests.nets:{net}"}}')
    assert fit(tmp_path, config, "--out", "first").returncode == 0
    weights = tmp_path / "w.safetensors"
    saved = tensors(tmp_path / "first")
    save_file({name[6:]: value * 3 for name, value in saved.items() if name.startswith("model/")}, weights)
    config = config.replace(f'{net}"', f'{net}", weights: {weights}').replace("every: 6step", "every: 6step, keep: 9")
    assert_resumes_in_the_same_bits(tmp_path, config, 12)


def test_where_training_goes_back_to_is_not_changed_on_the_way(rolled_back: Path) -> None:
    for key in ("checkpoint.every=2step", "checkpoint.keep=1"):
        ended = fit(rolled_back, FRAGILE, "--resume", "--out", "whole", "--set", key)
        assert ended.returncode == 2, ended.stderr
        assert key.partition("=")[0] in ended.stderr


@pytest.mark.parametrize("forged", [[], [{"failed": 9, "to": 6, "factor": 0.5}]])
def test_going_back_otherwise_than_the_log_says_is_refused(
    rolled_back: Path, tmp_path: Path, forged: list[dict[str, Any]]
) -> None:
    shutil.copytree(rolled_back, tmp_path, dirs_exist_ok=True)
    step = format.newest(tmp_path / "whole" / "checkpoints")[0].path
    rewrite(step, rollbacks=forged)
    ended = fit(tmp_path, FRAGILE, "--out", "whole", "--resume")
    assert ended.returncode == 4, ended.stderr
    assert "the checkpoint contradicts the log: rollbacks:" in ended.stderr


def test_going_back_ends_after_three_times(tmp_path: Path) -> None:
    model = 'model={name: "tests.nets:bad_gradient", at: 9}'
    ended = fit(tmp_path, FRAGILE, "--set", model, "--out", "run")
    assert ended.returncode == 6
    assert "training went back 3 times already" in ended.stderr
    assert sum(row["event"] == "rollback" for row in rows(tmp_path / "run")) == 3
    last = json.loads((tmp_path / "run" / "checkpoints" / "last.json").read_text())["checkpoint"]
    assert f"the last good checkpoint is {last}" in ended.stderr


BAD = ("--set", 'model={name: "tests.nets:bad_gradient", at: 9}', "--out", "run")


def test_checkpoints_of_another_cadence_are_not_taken_for_damaged(tmp_path: Path) -> None:
    """`checkpoint.every` may change in a run that stops, and what it had saved before is good all the same."""
    stop = ("--set", "on_nonfinite=stop", "--set", "checkpoint.keep=1")
    for every, more in (("5step", ()), ("20step", ("--resume",))):
        ended = fit(tmp_path, FRAGILE, *BAD, *stop, "--set", f"checkpoint.every={every}", *more)
        assert ended.returncode == 6, ended.stderr
        assert "the last good checkpoint is step-00000005" in ended.stderr
        assert (tmp_path / "run" / "nonfinite-00000009.json").exists()
        (tmp_path / "run" / "nonfinite-00000009.json").unlink()


def test_a_run_that_was_made_longer_goes_back_to_what_it_saved_before(tmp_path: Path) -> None:
    """A cadence in parts of the run is another since, by which the checkpoint would not have been due."""
    every = ("--set", "checkpoint.every=25%", "--set", "checkpoint.keep=1", "--set", "epochs=null")
    (tmp_path / "c.yaml").write_text(FRAGILE)
    at = environment(TEST_SIGNAL="SIGTERM@7")
    stopped = run(["fit", "c.yaml", *BAD, *every, "--set", "steps=24"], tmp_path, at)
    assert stopped.returncode == 143, stopped.stderr
    ended = fit(tmp_path, FRAGILE, *BAD, *every, "--set", "steps=48", "--resume", "--extend", "hold")
    assert ended.returncode == 6, ended.stderr
    gone_back = [row["step"] for row in rows(tmp_path / "run") if row["event"] == "rollback"]
    assert gone_back[0] == 6
    assert "training went back 3 times already" in ended.stderr


def test_a_damaged_checkpoint_is_passed_over_with_a_warning_and_set_aside(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(FRAGILE)
    stopped = run(["fit", "c.yaml", *BAD, "--out", "run"], tmp_path, environment(TEST_SIGNAL="SIGTERM@8"))
    assert stopped.returncode == 143, stopped.stderr
    checkpoints = tmp_path / "run" / "checkpoints"
    model = checkpoints / "step-00000006" / "model.safetensors"
    content = model.read_bytes()
    model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    ended = fit(tmp_path, FRAGILE, *BAD, "--resume", "--out", "run")
    said = " ".join(ended.stdout.split())
    assert "warning: step-00000006 is damaged, the one before is used: model.safetensors is damaged" in said
    assert "step-00000008 is damaged" not in said
    assert "went back to step-00000000" in said
    assert (checkpoints / ".bad-step-00000006" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("precision", "policy", "free"),
    [("fp16", "rollback", False), ("bf16", "rollback", True), ("fp16", "stop", True)],
)
def test_how_often_fp16_is_logged_may_not_change_where_training_goes_back_by_it(
    precision: str, policy: str, free: bool
) -> None:
    section = {"precision": precision, "on_nonfinite": policy}
    config = job(model="small_cnn", **section).config
    assert ("log_every" in free_to_change(config)) == free
