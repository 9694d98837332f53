"""The command line. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import atexit
import gc
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from lrtrain import __version__
from lrtrain.ending import complain, ending, leave, tell
from lrtrain.errors import ConfigError, DistributedError, EnvironmentFault, Problem
from lrtrain.streams import unheeded
from lrtrain.world import ALONE, from_environment

app = typer.Typer(
    name="lrtrain",
    help="Train image classifiers from one YAML file, with exactly the learning rate that was shown.",
    epilog="Start: lrtrain init --example, then lrtrain preview, then lrtrain fit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

P = ParamSpec("P")
UsageError: Any = typer.BadParameter.__base__  # typer's own, or click's in older versions

# readable: what may not be read is told in our own words, with the exit code of a permission.
Config = Annotated[
    Path | None,
    typer.Argument(readable=False, help="The YAML config; ./lrtrain.yaml when left out.", show_default=False),
]
Run = Annotated[Path, typer.Argument(readable=False, help="A run directory, such as runs/quickstart.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", show_default=False, help="Override any key: --set optimizer.lr=0.05. Repeatable."
    ),
]
Json = Annotated[
    Path | None,
    typer.Option("--json", readable=False, metavar="FILE", help="Write the result as JSON.", show_default=False),
]
Trust = Annotated[bool, typer.Option("--trust", help="Run code that a run directory's config names (pkg.mod:attr).")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class Sweep(StrEnum):
    """How the LR rises in a range test."""

    exp = "exp"
    linear = "linear"


class Extend(StrEnum):
    """How the LR goes on in a run that is made longer."""

    hold = "hold"
    rescale = "rescale"
    restart = "restart"


class Kind(StrEnum):
    """What `lrtrain list` lists."""

    models = "models"
    schedules = "schedules"
    optimizers = "optimizers"
    datasets = "datasets"
    transforms = "transforms"


class Which(StrEnum):
    """Which checkpoint of a run."""

    best = "best"
    last = "last"


class SplitName(StrEnum):
    """Which images are evaluated."""

    val = "val"
    test = "test"
    train = "train"


def command(name: str) -> Callable[[Callable[P, int | None]], Callable[P, None]]:
    """Register a command whose errors end as a message and an exit code."""

    def register(function: Callable[P, int | None]) -> Callable[P, None]:
        return app.command(name)(ending(function))

    return register


def _version(value: bool) -> None:
    if value:
        typer.echo(f"lrtrain {__version__}")
        raise typer.Exit


@app.callback()
def _lrtrain(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    try:
        os.getcwd()
    except FileNotFoundError:  # torch's libraries would end the process without a word of use
        raise EnvironmentFault("the folder that this is run in was deleted", hint="cd to another one") from None
    with suppress(DistributedError):  # which `fit` tells
        if context.invoked_subcommand != "fit" and not from_environment().leads:
            raise typer.Exit  # of torchrun's processes one is enough where nothing is trained


@command("fit")
def fit(
    config: Config = None,
    set: Set = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            readable=False,
            metavar="DIR",
            show_default=False,
            help="Run directory; runs/<config's name> when left out.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on where the run in --out stopped, or the newest of this config's name."),
    ] = False,
    extend: Annotated[
        Extend | None,
        typer.Option(
            "--extend",
            show_default=False,
            help="With --resume and more epochs or steps: hold the last LR, rescale the schedule to the new length, or "
            "restart it.",
        ),
    ] = None,
    allow_inexact: Annotated[
        bool,
        typer.Option(
            "--allow-inexact", help="With --resume: go on though the bits will differ (other torch, threads ...)."
        ),
    ] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="A few steps of everything, for CI; leaves nothing.")] = False,
    trust: Trust = False,
    debug: Debug = False,
) -> int:
    """Train."""
    from lrtrain.commands.start import start, start_fit

    world = from_environment()
    if smoke:
        given = {"--out": out, "--resume": resume, "--extend": extend, "--allow-inexact": allow_inexact}
        if flag := next((flag for flag, value in given.items() if value), ""):
            raise ConfigError(f"--smoke leaves no run, and {flag} is for one", hint=f"drop {flag}, or --smoke")
        if not world.leads:
            return 0  # of torchrun's processes one is enough, which trains alone
        started = start(config, [*(set or []), "cache=off", "workers=0"], trust=trust)
        from lrtrain.commands import smoke as smoke_test
        from lrtrain.commands.signals import stop_requests

        with stop_requests():  # a signal ends it as an exit does, which removes its folder
            return smoke_test.run(started.config)
    if (extend or allow_inexact) and not resume:
        flag = "--extend" if extend else "--allow-inexact"
        raise ConfigError(
            f"{flag} says how a run goes on, and there is no --resume", hint=f"add --resume, or drop {flag}"
        )
    started, resumed = start_fit(config, set, out, resume=resume, trust=trust, world=world)
    if world.leads:
        tell(f"{started.label} is valid; loading the data")
    from lrtrain.commands.fit import run
    from lrtrain.commands.resume import Wishes
    from lrtrain.commands.signals import stop_requests

    # Only now: until torch is imported, a signal ends the process at once.
    with stop_requests(world) as requests:
        wishes = Wishes(extend.value if extend else None, allow_inexact)
        return run(started, out, resumed, requests, world=world, wishes=wishes, complain=complain)


@command("range-test")
def range_test(
    config: Config = None,
    set: Set = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            readable=False,
            metavar="DIR",
            show_default=False,
            help="Folder for range-test.png and range-test.json; runs/<config's name>-range-test when left out.",
        ),
    ] = None,
    json: Json = None,
    start: Annotated[float, typer.Option("--start", help="First LR.")] = 1e-7,
    end: Annotated[float, typer.Option("--end", help="Last LR.")] = 10.0,
    steps: Annotated[int, typer.Option("--steps", min=20, max=1_000_000, help="Optimizer steps in the sweep.")] = 100,
    mode: Annotated[Sweep, typer.Option("--mode", help="How the LR rises.")] = Sweep.exp,
    trust: Trust = False,
    debug: Debug = False,
) -> None:
    """Sweep the LR and suggest one (Smith 2015)."""
    from lrtrain.commands import start as starting

    if not 0 < start < end <= 1000:
        raise ConfigError(
            f"the LR must rise from above 0 to at most 1000: --start {start:g} --end {end:g}",
            hint="--start 1e-7 --end 10",
        )
    if mode is Sweep.exp and end / start > sys.float_info.max:
        what = f"the LR rises by more than a float can hold: --start {start:g} --end {end:g}"
        raise ConfigError(what, hint="--start 1e-7, or --mode linear")
    started = starting.start(config, set, trust=trust)
    folder = out or Path("runs") / f"{started.name}-range-test"
    written = {f"{name} in --out": folder / name for name in ("range-test.png", "range-test.json")}
    # The same evidence goes into both.
    own = json is not None and os.path.realpath(json) == os.path.realpath(folder / "range-test.json")
    starting.refuse_overwriting(written | {"--json": None if own else json}, config, started.config)
    from lrtrain.commands.range_test import run
    from lrtrain.range_test.sweep import sweep_lrs

    run(started, sweep_lrs(start, end, steps, mode.value), mode.value, folder, json)


@command("preview")
def preview(
    config: Config = None,
    set: Set = None,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", readable=False, metavar="FILE", show_default=False, help="Write every step's LR."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", readable=False, metavar="FILE", show_default=False, help="Draw the curve: .png, .svg or .pdf."
        ),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option("--at", metavar="TIME", show_default=False, help="The LR at 3.5ep, 300step or 10%. Repeatable."),
    ] = None,
    trust: Trust = False,
    debug: Debug = False,
) -> None:
    """Show the LR of every group at every step, without training."""
    from lrtrain.commands.start import refuse_overwriting, start

    started = start(config, set, trust=trust)
    refuse_overwriting({"--csv": csv, "--plot": plot}, config, started.config)
    from lrtrain.commands.preview import run

    run(started.config, csv, plot, at or [])


@command("evaluate")
def evaluate(
    run_dir: Run,
    set: Set = None,
    split: Annotated[SplitName, typer.Option("--split", help="Which images.")] = SplitName.val,
    checkpoint: Annotated[Which, typer.Option("--checkpoint", help="Which weights.")] = Which.best,
    json: Json = None,
    trust: Trust = False,
    debug: Debug = False,
) -> None:
    """Loss and accuracy of a trained run, in total and by class."""
    from lrtrain.commands.start import refuse_overwriting, start_from_run

    config = start_from_run(run_dir, set, trust=trust, evaluates=True)
    refuse_overwriting({"--json": json}, run_dir, config)
    from lrtrain.commands.evaluate import run

    run(run_dir, config, split.value, checkpoint.value, json)


@command("verify")
def verify(run_dir: Run, debug: Debug = False) -> None:
    """Check every checkpoint of a run against what was written."""
    from lrtrain.commands.verify import run

    run(run_dir)


@command("check")
def check(
    target: Annotated[
        Path | None,
        typer.Argument(
            readable=False,
            metavar="[CONFIG|FOLDER]",
            help="A YAML config, a run directory, or a folder of images; ./lrtrain.yaml when left out.",
            show_default=False,
        ),
    ] = None,
    set: Set = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings refuse too: exit code 3.")] = False,
    write_skip_list: Annotated[
        Path | None,
        typer.Option(
            "--write-skip-list",
            readable=False,
            metavar="FILE",
            show_default=False,
            help="Write the images that cannot be read, for you to review and name as dataset.skip_list.",
        ),
    ] = None,
    json: Json = None,
    trust: Trust = False,
    debug: Debug = False,
) -> int:
    """Look at every image, and say everything that is wrong with a dataset."""
    from lrtrain.commands.start import is_from_a_run, refuse_overwriting, start_check
    from lrtrain.sinks.run_dir import is_run

    started = start_check(target, set, trust=trust)
    from lrtrain.commands.check import refuse_taken, run

    refuse_taken(write_skip_list)
    refuse_overwriting({"--json": json, "--write-skip-list": write_skip_list}, target, started)
    # A run has weights of its own by now.
    weights = target is None or not (is_run(target) or is_from_a_run(target))
    return run(started, json, write_skip_list, strict=strict, weights=weights)


@command("list")
def list_(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    debug: Debug = False,
) -> None:
    """Names that a config can use, with their arguments."""
    from lrtrain.commands.list import run

    run(kind.value)


@command("schema")
def schema(debug: Debug = False) -> None:
    """Print the config's JSON Schema, for editors that complete keys."""
    from lrtrain.commands.schema import run

    run()


@command("init")
def init(
    path: Annotated[Path, typer.Argument(readable=False, help="The file to write.")] = Path("lrtrain.yaml"),
    example: Annotated[bool, typer.Option("--example", help="The quickstart's config, on digits.")] = False,
    debug: Debug = False,
) -> None:
    """Write a config to start from."""
    from lrtrain.commands.init import run

    run(path, example=example)


def main() -> None:
    """Entry point of the `lrtrain` command."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            # The descriptor is closed; left so, the next file that is opened would get its number, and our output.
            null = os.open(os.devnull, os.O_WRONLY)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, unheeded(stream))
    # Importing torch makes a million objects that stay; looking through them again and again is a tenth of the start.
    # At the exit Python would look through them once more before it frees them: a third of a second for nothing.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    world = ALONE
    with suppress(DistributedError):  # which `fit` tells
        world = from_environment()
        if world.size > 1:  # torch would say of each process that all its parameters are used
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        if not world.leads:
            os.environ["TQDM_DISABLE"] = "1"
    try:
        ending(_run)()
    except SystemExit as end:
        if world.size > 1:
            leave(end.code if isinstance(end.code, int) else 1)
        raise


def _run() -> int:
    try:
        code = app(standalone_mode=False)
        return code if isinstance(code, int) else 0
    except UsageError as error:
        if len(sys.argv) > 1:
            complain(str(_usage_problem(error)))
        else:
            with suppress(OSError):
                error.show()  # the help
        return ConfigError.exit_code


def _usage_problem(error: Any) -> Problem:
    """What typer says of a command line, in the shape of every other error."""
    command = "lrtrain" if error.ctx is None or error.ctx.parent is None else f"lrtrain {error.ctx.info_name}"
    typed = shlex.join(["lrtrain", *sys.argv[1:]])
    return Problem(
        " ".join(error.format_message().replace("Value error, ", "").split()),
        typed[:200],
        f"{_as_key(error)}`{command} -h` shows what it takes",
    )


def _as_key(error: Any) -> str:
    """How a key of the config that was typed as an option is set."""
    option = getattr(error, "option_name", "")
    if not option or error.ctx is None or "set" not in [known.name for known in error.ctx.command.params]:
        return ""
    from lrtrain.config.messages import belongs
    from lrtrain.config.schema import RunConfig

    name = option.strip("-").replace("-", "_")
    known = name.partition(".")[0] in RunConfig.model_fields.keys() - {"extended"}
    key = name if known else belongs(name)
    return f"write it as --set {key}=VALUE; " if key else ""
