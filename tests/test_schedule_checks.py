"""What a schedule is refused for, before torch is imported: one error each, with the fix."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lrtrain import lookup
from lrtrain.config.schedule_checks import check_phase
from lrtrain.config.scheduler_arguments import Interval
from lrtrain.config.schema import Phase
from lrtrain.errors import ConfigError
from tests.schedules import config_of, plan_of

EXP = "{name: ExponentialLR, gamma: 0.9, every: step}"
AT_LOAD = [
    ("{name: StepLR, step_size: 30}", "step_size: 30 has no unit", "write 30ep or 30step"),
    ("{name: StepLR, step_size: 2.5}", "step_size: 2.5 has no unit", "write 2.5ep"),
    ("{name: StepLR, step_size: 2.5, every: epoch}", "step_size must be a whole number; got 2.5", None),
    ("{name: StepLR, step_size: '30'}", "step_size must be a number; got the text '30'", "without them"),
    ("{name: StepLR, step_size: 30epochs}", "step_size: '30epochs' is not a duration", "5ep"),
    ("{name: StepLR, step_size: [1ep]}", "step_size must be one length", None),
    ("{name: StepLR, step_size: true}", "step_size: a duration is written", None),
    (
        "{name: StepLR, step_size: 2.5ep, every: epoch}",
        "2.5ep is not a whole number of epochs",
        "every: step",
    ),
    ("{name: StepLR, step_size: 2ep, gamma: 0}", "gamma must be greater than 0; got 0", "ends training"),
    ("{name: StepLR, step_size: 2ep, gamma: [0.1]}", "gamma must be one number", None),
    ("{name: StepLR, step_size: 2ep, gamma: abc}", "gamma must be a number; got the text 'abc'", None),
    ("{name: StepLR, step_size: 2ep, gamma: .inf}", "gamma must be a finite number; got inf", None),
    (
        "{name: MultiStepLR, milestones: [2, 4]}",
        "milestones: [2, 4] has no unit",
        "[2ep, 4ep] or [2step, 4step]",
    ),
    ("{name: MultiStepLR, milestones: 2ep}", "milestones must be a list", None),
    ("{name: MultiStepLR, milestones: []}", "milestones is empty", "[30ep, 60ep]"),
    ("{name: MultiStepLR, milestones: [4ep, 2ep]}", "milestones must rise: 2ep comes after 4ep", None),
    ("{name: MultiStepLR, milestones: [4, 4], every: epoch}", "milestones must rise: 4 comes after 4", None),
    ("{name: ExponentialLR, gamma: 0.9}", "ExponentialLR needs `every: epoch` or `every: step`", "beside it"),
    ("{name: LambdaLR, lr_lambda: 0.9 ** t}", "LambdaLR needs `every: epoch`", "beside it"),
    (
        "{name: LambdaLR, every: step, lr_lambda: 0.9 ** epoch}",
        "'epoch' is not known in a formula",
        "0.95 ** t",
    ),
    ("{name: CyclicLR, base_lr: 0.01}", "step_size_up is absent, and torch's default is 2000 ticks", "every"),
    (
        "{name: CyclicLR, base_lr: 0.01, step_size_up: 1ep, mode: exp_range}",
        "CyclicLR needs `every: epoch`",
        "every",
    ),
    (
        "{name: CyclicLR, base_lr: 0.01, step_size_up: 1ep, mode: triangle}",
        "mode cannot be",
        "triangular, triangular2",
    ),
    (
        "{name: CosineAnnealingWarmRestarts, T_0: 1ep, T_mult: 1.5}",
        "T_mult must be a whole number, at least 1",
        None,
    ),
    ("{name: OneCycleLR, epochs: 30}", "OneCycleLR cannot take epochs here", "`for` gives the length"),
    (
        "{name: OneCycleLR, pct_start: 1.5}",
        "pct_start must be greater than 0 and at most 1; got 1.5",
        "rises",
    ),
    ("{name: OneCycleLR, anneal_strategy: cosine}", "anneal_strategy cannot be", "cos, linear"),
    ("{name: OneCycleLR, cycle_momentum: 1}", "cycle_momentum must be true or false", None),
    ("{name: ReduceLROnPlateau, every: epoch}", "ReduceLROnPlateau ticks at each evaluation", "eval_every"),
    (
        "{name: ReduceLROnPlateau, patience: 5ep}",
        "patience must be a whole number of evaluations, at least 0",
        None,
    ),
    ("{name: ReduceLROnPlateau, factor: 1}", "factor must be greater than 0 and less than 1; got 1", None),
    ("{name: StepLR, step_size: 1ep, monitor: val_loss}", "StepLR watches no metric", "leave it out"),
    (
        "{name: ReduceLROnPlateau, cooldown: 3.5}",
        "cooldown must be a whole number of evaluations",
        "such as cooldown: 2",
    ),
    ("{name: wsd, cooldown: 20}", "cooldown: 20 has no unit", "write 20ep or 20step"),
    ("{name: wsd, cooldown: 20%, shape: sqrt}", "shape cannot be the text 'sqrt'", "linear, cosine, 1-sqrt"),
    ("{name: rex, floor: 2}", "floor must be at least 0 and at most 1; got 2", None),
    (
        "{name: StepLR, step_size: 1ep, warmup: 2ep, for: 8ep}",
        "warmup: 2ep and for: 8ep contradict",
        "name: LinearLR",
    ),
    (
        "{name: StepLR, step_size: 1ep, warmup: 0ep}",
        "a phase lasts longer than zero; got 0ep",
        "leave the warmup out",
    ),
    (
        "{name: StepLR, step_size: 1ep, warmup: 40ep}",
        "the warm-up lasts 40ep, but the run has 10 epochs",
        "shorten",
    ),
    (
        "[{name: fixed, for: 2ep}, {name: OneCycleLR, warmup: 1ep}]",
        "warmup is for a schedule of one phase",
        "LinearLR",
    ),
    ("[{name: fixed}, {name: OneCycleLR}]", "every phase but the last needs its length", "for: 5ep"),
    (
        "[{name: fixed, for: rest}, {name: OneCycleLR}]",
        "2 phases last for the rest",
        "give the others a length",
    ),
    (
        "[{name: fixed, for: 5ep}, {name: OneCycleLR, for: 4ep}]",
        "5ep + 4ep = 9 epochs, but the run has 10",
        "rest",
    ),
    (
        "[{name: fixed, for: 5ep}, {name: OneCycleLR, for: 60%}]",
        "5ep + 60% = 11 epochs, but the run has 10",
        "shorten",
    ),
    ("[{name: fixed, for: 10ep}, {name: OneCycleLR}]", "which leaves nothing for the rest", "shorten"),
    ("[{name: fixed, for: 10ep}, {name: OneCycleLR, for: 5step}]", "at least 10 epochs", "shorten"),
    (
        "[{name: CosineAnnealingLR, for: 2.5ep, every: epoch}, fixed]",
        "`every: epoch` ticks at whole epochs",
        "every: step",
    ),
    ("{name: ChainedScheduler}", "ChainedScheduler needs a list of schedulers", "schedulers: ["),
    ("{name: ChainedScheduler, schedulers: [{gamma: 1}]}", "a mapping with a name", "such as"),
    (f"{{name: ChainedScheduler, optimizer: 1, schedulers: [{EXP}]}}", "has no 'every' of its own", "beside"),
    ("{name: ChainedScheduler, every: step, schedulers: [rex]}", "it is a shape of ours", "torch's own"),
    (
        "{name: ChainedScheduler, every: step, schedulers: [Steplr]}",
        "there is no scheduler 'Steplr'",
        "'StepLR'",
    ),
    ("{name: ChainedScheduler, every: step, schedulers: [StepLR]}", "StepLR needs step_size", "no default"),
    (
        "{name: ChainedScheduler, every: step, schedulers: [{name: StepLR, stepsize: 1ep}]}",
        "no argument 'stepsize'",
        "did you mean 'step_size'",
    ),
    (
        "{name: ChainedScheduler, schedulers: [{name: StepLR, step_size: 3}]}",
        "step_size: 3 has no unit",
        "3ep",
    ),
    (
        "{name: SequentialLR, milestones: [2, 5], schedulers: [LinearLR, StepLR, fixed]}",
        "written as a list of phases",
        "- {name: StepLR, for: 3ep}",
    ),
    (
        "{name: SequentialLR, milestones: [soon], schedulers: [LinearLR, StepLR]}",
        "written as a list of phases",
        "such as",
    ),
]


@pytest.mark.parametrize(("schedule", "what", "hint"), AT_LOAD)
def test_a_mistake_is_refused_at_load_with_its_place_and_fix(schedule: str, what: str, hint: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(schedule, length="epochs: 10")
    problem = next(problem for problem in caught.value.problems if what in problem.what)
    assert problem.where is not None
    assert problem.where.startswith("c.yaml:6  schedule")
    assert hint is None or (problem.hint is not None and hint in problem.hint)


IN_THE_PLAN = [
    (
        "{name: MultiStepLR, milestones: [2ep, 10ep]}",
        "the milestone at 10 epochs (500 steps) is not before the phase's end",
    ),
    ("{name: MultiStepLR, milestones: [2ep, 90step]}", "milestones must rise; in ticks they are [100, 90]"),
    (
        "{name: StepLR, step_size: 75step, every: epoch}",
        "75step is 1.5 epochs, but the scheduler ticks once an epoch",
    ),
    ("{name: StepLR, step_size: 0.001ep}", "0.001ep is less than half a step"),
    (
        "[{name: CosineAnnealingLR, for: 75step, every: epoch}, fixed]",
        "CosineAnnealingLR ticks once an epoch and fills",
    ),
    (
        "{name: CyclicLR, step_size_up: 1ep, base_lr: 0.2}",
        "base_lr 0.2 is above the LR 0.1 of parameter group a",
    ),
    ("{name: OneCycleLR, max_lr: [0.1, 0.1]}", "max_lr has 2 values for 1 parameter groups (a)"),
    ("{name: LambdaLR, every: step, lr_lambda: 1 / t}", "LambdaLR cannot be computed: '1 / t' at t = 0"),
    ("{name: LambdaLR, every: step, lr_lambda: 1 - t}", "the LR would be -0.1 at step 2"),
    (
        "{name: ExponentialLR, every: step, gamma: 1.0e+10}",
        "ExponentialLR cannot be computed: the LR would be 1e+39 at step 4; it must be 0 to 3.4e+38",
    ),
    (
        "[{name: fixed, for: 9ep}, {name: wsd, cooldown: 20%}]",
        "the cooldown lasts 100 ticks, the phase only 50",
    ),
    ("{name: 'torch.optim.lr_scheduler:ReduceLROnPlateau', every: step}", "watch a metric"),
    ("{name: 'torch.optim.lr_scheduler:Nothing', every: step}", "cannot import"),
]


@pytest.mark.parametrize(("schedule", "message"), IN_THE_PLAN)
def test_a_mistake_that_shows_only_in_this_run_is_refused_before_training(schedule: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of(schedule)
    assert message in str(caught.value)


def test_the_plan_reports_the_problems_of_every_phase_together() -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of("[{name: MultiStepLR, for: 3ep, milestones: [4ep]}, {name: CosineAnnealingLR, eta_min: 1.0}]")
    assert [problem.where for problem in caught.value.problems] == [
        "c.yaml:6  schedule[0].milestones",
        "c.yaml:6  schedule[1].eta_min",
    ]


def test_checking_a_schedule_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from lrtrain.config import yaml, load\n"
        "text = 'epochs: 3\\nbatch_size: 8\\nmodel: resnet18\\ndataset: digits\\n' \\\n"
        "    'optimizer: {name: SGD, lr: 0.1}\\nschedule: {name: wsd, warmup: 1ep, cooldown: 20%}\\n'\n"
        "load.resolve(yaml.parse(text, 'c.yaml')); print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False False\n"
    )


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 50)
    | st.floats()
    | st.sampled_from(["5ep", "10%", "0step", "1.5ep", "StepLR", "x", "", "t", "1 / t", "OneCycleLR", "cos"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "gamma", "T_max"]), inner),
)
KEYS = [
    "every",
    "for",
    "warmup",
    "monitor",
    "schedulers",
    "milestones",
    "step_size",
    "gamma",
    "T_max",
    "max_lr",
    "total_steps",
    "pct_start",
    "lr_lambda",
    "mode",
    "cooldown",
    "min_lr",
    "base_lr",
    "eta_min",
    "total_iters",
]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.sampled_from([*lookup.names("scheduler"), "Nothing", "a.b:c"]),
    st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=5),
)
def test_no_phase_however_written_is_more_than_a_list_of_problems(name: str, keys: dict[str, object]) -> None:
    try:
        phase = Phase.model_validate({"name": name, **keys})
    except ValidationError:
        return
    for problem in check_phase(phase, ("schedule",), lambda *loc: str(loc)):
        assert problem.what


def test_an_interval_says_its_ends() -> None:
    half_open = Interval("(0, 1]")
    assert (0 in half_open, 1e-9 in half_open, 1 in half_open) == (False, True, True)
    assert str(half_open) == "greater than 0 and at most 1"
    assert str(Interval("[0, inf)")) == "at least 0"
