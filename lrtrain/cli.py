"""The command line. Nothing heavy is imported until a command runs; errors are printed here and nowhere else."""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from lrtrain import __version__
from lrtrain.errors import ConfigError, LrtrainError, Problem, printable
from lrtrain.world import from_environment

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

Config = Annotated[
    Path | None, typer.Argument(help="The YAML config; ./lrtrain.yaml when left out.", show_default=False)
]
Run = Annotated[Path, typer.Argument(help="A run directory, such as runs/quickstart.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", show_default=False, help="Override any key: --set optimizer.lr=0.05. Repeatable."
    ),
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON.", show_default=False)
]
Trust = Annotated[bool, typer.Option("--trust", help="Run code that the run directory's config names (pkg.mod:attr).")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class Sweep(StrEnum):
    """How the LR rises in a range test."""

    exp = "exp"
    linear = "linear"


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
        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
            code = 1
            try:
                code = function(*args, **kwargs) or 0
            except LrtrainError as error:
                if kwargs.get("debug"):
                    raise
                # Of several processes the leading one speaks for what all of them find.
                if from_environment().leads or not isinstance(error, ConfigError):
                    complain(str(error))
                code = error.exit_code
            except KeyboardInterrupt:
                complain("interrupted before training began")
                code = 130
            except MemoryError:
                complain(str(Problem("out of memory", hint="lower batch_size, or set cache: off")))
                code = 5
            except BrokenPipeError:
                sys.stderr.close()
                code = 0
            except Exception as error:
                if kwargs.get("debug"):
                    raise
                complain(_report_crash(error))
            raise SystemExit(code)

        return app.command(name)(guarded)

    return register


def tell(text: str) -> None:
    """Print to stdout, whatever has become of it."""
    try:
        print(printable(text), flush=True)  # noqa: T201
    except (OSError, ValueError):
        return


def complain(text: str) -> None:
    """Print to stderr, whatever has become of it."""
    try:
        print(text, file=sys.stderr, flush=True)  # noqa: T201
    except (OSError, ValueError):
        return


def _report_crash(error: Exception) -> str:
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="lrtrain-crash-", suffix=".txt", delete=False) as file:
        file.write(f"lrtrain {__version__}, python {sys.version}\n{sys.argv}\n\n")
        traceback.print_exception(error, file=file)
    what = f"this is a bug in lrtrain: {type(error).__name__}: {error}"
    return str(Problem(what[:600], hint=f"the traceback is in {file.name}; please report it"))


def _version(value: bool) -> None:
    if value:
        typer.echo(f"lrtrain {__version__}")
        raise typer.Exit


@app.callback()
def _lrtrain(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@command("fit")
def fit(
    config: Config = None,
    set: Set = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", show_default=False, help="Run directory; runs/<config's name> when left out."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on where the run in --out stopped, or the newest of this config's name."),
    ] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="A few steps of everything, for CI; leaves nothing.")] = False,
    debug: Debug = False,
) -> int:
    """Train."""
    from lrtrain.commands.start import start, start_fit

    if smoke:
        started = start(config, [*(set or []), "cache=off", "workers=0"])
        from lrtrain.commands import smoke as smoke_test

        return smoke_test.run(started.config)
    world = from_environment()
    started, resumed = start_fit(config, set, out, resume=resume, world=world)
    if world.leads:
        tell(f"{started.label} is valid; loading the data")
    from lrtrain.commands.fit import run

    return run(started, out, resumed, world)


@command("range-test")
def range_test(
    config: Config = None,
    set: Set = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            show_default=False,
            help="Folder for range-test.png and range-test.json; runs/<config's name>-range-test when left out.",
        ),
    ] = None,
    json: Json = None,
    start: Annotated[float, typer.Option("--start", help="First LR.")] = 1e-7,
    end: Annotated[float, typer.Option("--end", help="Last LR.")] = 10.0,
    steps: Annotated[int, typer.Option("--steps", min=20, help="Optimizer steps in the sweep.")] = 100,
    mode: Annotated[Sweep, typer.Option("--mode", help="How the LR rises.")] = Sweep.exp,
    debug: Debug = False,
) -> None:
    """Sweep the LR and suggest one (Smith 2015)."""
    from lrtrain.commands import start as starting

    if not 0 < start < end <= 1000:
        raise ConfigError(
            f"the LR must rise from above 0 to at most 1000: --start {start:g} --end {end:g}",
            hint="--start 1e-7 --end 10",
        )
    started = starting.start(config, set)
    from lrtrain.commands.range_test import run
    from lrtrain.range_test.sweep import sweep_lrs

    run(started, sweep_lrs(start, end, steps, mode.value), mode.value, out, json)


@command("preview")
def preview(
    config: Config = None,
    set: Set = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", show_default=False, help="Write every step's LR.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", show_default=False, help="Draw the curve: .png, .svg or .pdf."),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option("--at", metavar="TIME", show_default=False, help="The LR at 3.5ep, 300step or 10%. Repeatable."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Show the LR of every group at every step, without training."""
    from lrtrain.commands.start import start

    started = start(config, set)
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
    from lrtrain.commands.start import start_from_run

    config = start_from_run(run_dir, set, trust=trust)
    from lrtrain.commands.evaluate import run

    run(run_dir, config, split.value, checkpoint.value, json)


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
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("lrtrain.yaml"),
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
            setattr(sys, name, os.fdopen(number, "w"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # Importing torch makes a million objects that stay; looking through them again and again is a tenth of the start.
    gc.set_threshold(50_000)
    if not from_environment().leads:
        os.environ["TQDM_DISABLE"] = "1"
    app()
