"""Command lines that are wrong, and run directories that came from elsewhere."""

from __future__ import annotations

import ast
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lrtrain.errors import listed
from tests.conftest import REPOSITORY, Ended
from tests.forked import environment
from tests.hostile import Typed, assert_clear
from tests.test_hostile_checkpoint import manifest_of, rewrite

GOOD = """steps: 4
batch_size: 96
model: {name: small_cnn, width: 4}
dataset: digits
optimizer: {name: SGD, lr: 0.05, momentum: 0.9}
precision: fp32
workers: 0
"""


# what is wrong, the command line, the exit code, words of the error
LINES: list[tuple[str, list[str], int, tuple[str, ...]]] = [
    ("L02 a flag", ["fit", "c.yaml", "--sett", "a=b"], 2, ("--sett", "--set", "lrtrain fit -h")),
    ("L02 a command", ["fitt", "c.yaml"], 2, ("'fitt'", "Did you mean 'fit'", "lrtrain -h")),
    ("L02 a flag that mirrors a key", ["fit", "c.yaml", "--lr", "0.1"], 2, ("No such option: --lr", "write it as --set optimizer.lr=VALUE", "lrtrain fit -h")),
    ("L03 an LR in words", ["range-test", "c.yaml", "--start", "abc"], 2, ("--start", "abc")),
    ("L04 an LR that is no number", ["range-test", "c.yaml", "--start", "nan"], 2, ("--start nan", "--start 1e-7")),
    ("L04 a negative LR", ["range-test", "c.yaml", "--start", "-1"], 2, ("--start -1",)),
    ("L04 an infinite LR", ["range-test", "c.yaml", "--end", "inf"], 2, ("--end inf", "at most 1000")),
    ("C25 a sweep backwards", ["range-test", "c.yaml", "--start", "1", "--end", "0.1"], 2, ("--start 1 --end 0.1",)),
    ("too few steps", ["range-test", "c.yaml", "--steps", "3"], 2, ("--steps", "20")),
    ("L07 a file to resume", ["fit", "c.yaml", "--resume", "--out", "c.yaml"], 4, ("no run 'c.yaml'",)),
    ("L08 no CUDA", ["fit", "c.yaml", "--set", "device=cuda:99"], 2, ("cuda:99", "available: cpu")),
    ("L09 fewer than no workers", ["fit", "c.yaml", "--set", "workers=-1"], 2, ("workers must be at least 0; got -1",)),
    ("L09 too many workers", ["fit", "c.yaml", "--set", "workers=10000"], 2, ("workers must be at most 256",)),
    ("L10 a full folder", ["fit", "c.yaml", "--out", "full"], 7, ("'full' is not empty hint name another folder",)),
    ("a folder without a name", ["fit", "c.yaml", "--out", ""], 2, ("--out",)),
    ("a device for a folder", ["fit", "c.yaml", "--out", "/dev/null"], 7, ("is no folder hint name another folder",)),
    ("a folder in a file", ["fit", "c.yaml", "--out", "c.yaml/run"], 5, ("c.yaml",)),
    ("a name beyond the file system", ["fit", "c.yaml", "--out", "x" * 300], 5, ("--out cannot be used",)),
    ("L12 bytes that are no text", ["fit", "c\udcff.yaml"], 2, ("c\\udcff.yaml",)),
    ("L12 such bytes in a value", ["fit", "c.yaml", "--set", "model=\udcff"], 2, ("--set model=\\udcff",)),
    ("a control character in a value", ["fit", "c.yaml", "--set", "model=\x1b[2J"], 2, ("\\x1b",)),
    ("--set without a value", ["fit", "c.yaml", "--set", "optimizer.lr"], 2, ("is not KEY=VALUE",)),
    ("--set without a key", ["fit", "c.yaml", "--set", "=1"], 2, ("is not KEY=VALUE",)),
    *((f"--set {key}", ["fit", "c.yaml", "--set", f"{key}=1"], 2, ("is not KEY=VALUE", "such as --set optimizer.lr=0.05"))
      for key in ("optimizer..lr", ".optimizer.lr", "optimizer.lr.", "optimizer[lr", "optimizer.groups[0]lr", "optimizer[]lr")),
    ("--set of no YAML", ["fit", "c.yaml", "--set", "model=[1"], 2, ("--set model=[1", "bracket")),
    ("--set of an alias", ["fit", "c.yaml", "--set", "model=*a"], 2, ("aliases",)),
    ("--set of a tag", ["fit", "c.yaml", "--set", "model=!!python/name:os.system"], 2, ("tags are not allowed",)),
    ("--set of a key in other bytes", ["fit", "c.yaml", "--set", "model.\udcff=1"], 2, ("is no UTF-8 text", "model.\\udcff")),
    ("--set of a deep key", ["fit", "c.yaml", "--set", "dataset.splits" + ".x" * 300 + "=1"], 2, ("nested more than 20 deep",)),
    ("L08 a device of many digits", ["fit", "c.yaml", "--set", "device=cuda:" + "9" * 20], 2, ("device",)),
    ("--set deep", ["fit", "c.yaml", "--set", "model=" + "[" * 5000], 2, ("nested more than 20 deep",)),
    ("--set into a number", ["fit", "c.yaml", "--set", "steps.x.y=1"], 2, ("cannot set 'x'", "such as --set")),
    ("--set beyond a list", ["fit", "c.yaml", "--set", "schedule.4.name=StepLR"], 2, ("--set schedule.4.name=StepLR",)),
    ("--set of a million keys", ["fit", "c.yaml", "--set", ".".join("a" * 3000) + "=1"], 2, ("--set a.a.a",)),
    ("--set with a huge item", ["fit", "c.yaml", "--set", "schedule." + "9" * 300 + "=1"], 2, ("--set schedule.",)),
    ("--set of an unknown key", ["fit", "c.yaml", "--set", "precison=bf16"], 2, ("did you mean 'precision'",)),
    ("two configs", ["fit", "c.yaml", "d.yaml"], 2, ("d.yaml",)),
    ("a flag without its value", ["fit", "c.yaml", "--out"], 2, ("--out",)),
    ("--at without a unit", ["preview", "c.yaml", "--at", "3"], 2, ("--at 3", "--at 3.5ep")),
    ("--at beyond the end", ["preview", "c.yaml", "--at", "5step"], 2, ("after the run's last",)),
    ("--at in words", ["preview", "c.yaml", "--at", "x" * 500], 2, ("is not a duration", "...")),
    ("--plot to no picture", ["preview", "c.yaml", "--plot", "a.gif"], 2, (".png",)),
    ("--csv nowhere", ["preview", "c.yaml", "--csv", "no/such/a.csv"], 5, ("no/such/a.csv",)),
    ("K01 no run", ["evaluate", "nowhere"], 4, ("'nowhere' is no run directory", "runs/")),
    ("K02 another tool's folder", ["evaluate", "full"], 4, ("it has no config.yaml",)),
    ("K13 a .pth for a run", ["evaluate", "w.pth"], 4, ("'w.pth' is no run directory",)),
    ("K13 a .pth to resume", ["fit", "c.yaml", "--resume", "--out", "w.pth"], 4, ("no run 'w.pth'",)),
    ("no run of that name", ["fit", "c.yaml", "--resume"], 4, ("no run 'runs/c'", "leave out --resume")),
    ("a folder that is no run", ["fit", "c.yaml", "--resume", "--out", "full"], 4, ("no config.yaml", "--out")),
    ("K01 no run of a name beyond the file system", ["evaluate", "x" * 300], 2, ("File name too long", "check its name")),
    ("no run to verify of such a name", ["verify", "x" * 300], 2, ("File name too long", "check its name")),
    ("a run of nobody", ["evaluate", "~nouser/x"], 4, ("'~nouser/x' is no run directory",)),
    ("weights of nobody", ["fit", "c.yaml", "--set", "model.weights=~nouser/x.pth"], 4, ("no weights file '~nouser/x.pth'",)),
    ("weights beyond the file system", ["fit", "c.yaml", "--set", f"model.weights={'x' * 300}"], 4, ("File name too long",)),
    ("a folder of weights", ["fit", "c.yaml", "--set", "model.weights=full"], 4, ("no weights file 'full'", "directory")),
    ("weights in a file", ["fit", "c.yaml", "--set", "model.weights=c.yaml/x.pth"], 4, ("Not a directory",)),
    ("a device of weights", ["fit", "c.yaml", "--set", "model.weights=/dev/zero"], 4, ("it is no regular file",)),
    ("a model beyond memory", ["fit", "c.yaml", "--set", "model.width=200000"], 5, ("out of memory", "a smaller model")),
    ("a list of nothing", ["list", "things"], 2, ("'things'", "'models'")),
    ("a file that is there", ["init", "--example", "c.yaml"], 2, ("'c.yaml' is there already", "FILE")),
    ("an example nowhere", ["init", "--example", "no/a.yaml"], 5, ("'no/a.yaml'", "make its folder")),
    ("a smoke test with a run", ["fit", "c.yaml", "--smoke", "--out", "run"], 2, ("--out", "drop --out, or --smoke")),
    ("a smoke test that goes on", ["fit", "c.yaml", "--smoke", "--resume"], 2, ("--resume", "--smoke")),
    ("nothing to write", ["init"], 2, ("lrtrain init --example",)),
    ("a flag that mirrors a key of two words", ["preview", "c.yaml", "--batch-size=3"], 2, ("write it as --set batch_size=VALUE",)),
    ("a flag that is almost one", ["fit", "c.yaml", "--extended", "hold"], 2, ("hint `lrtrain fit -h` shows what it takes",)),
    ("a flag that is the key itself", ["preview", "c.yaml", "--optimizer.lr=0.1"], 2, ("write it as --set optimizer.lr=VALUE",)),
    ("such a flag where no config is set", ["list", "models", "--lr", "0.1"], 2, ("hint `lrtrain list -h` shows what it takes",)),
]  # fmt: skip


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Typed:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "c.yaml").write_text(GOOD)
    (tmp_path / "w.pth").write_bytes(b"weights")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "model.bin").write_bytes(b"")
    return Typed(monkeypatch, capfd)


@pytest.mark.parametrize(("line", "code", "words"), [row[1:] for row in LINES], ids=[row[0] for row in LINES])
def test_a_wrong_command_line_is_refused(
    typed: Typed, tmp_path: Path, line: list[str], code: int, words: tuple[str, ...]
) -> None:
    assert_clear(typed(*line), code, *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yaml", "full", "w.pth"]


@pytest.mark.parametrize("command", ["evaluate", "verify"])
def test_a_run_that_may_not_be_read_is_a_fault_of_the_environment(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    real = Path.stat

    def stat(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if "full" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", stat)
    monkeypatch.setattr(os, "access", lambda *args, **kwargs: False)
    assert_clear(typed(command, "full"), 5, "Permission denied", "full", "check its name, and that you may use it")


@pytest.mark.parametrize("command", ["fit", "preview", "check", "range-test"])
def test_a_config_that_may_not_be_read_is_a_fault_of_the_environment(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    real = os.open

    def refused(path: str | Path, *args: int, **kwargs: int) -> int:
        if str(path).endswith("c.yaml"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refused)
    monkeypatch.setattr(os, "access", lambda *args, **kwargs: False)
    assert_clear(typed(command, "c.yaml"), 5, "Permission denied", "c.yaml")


def test_weights_that_a_run_once_began_with_need_not_be_there(typed: Typed, tmp_path: Path) -> None:
    assert typed("fit", "c.yaml", "--out", "run").code == 0
    config = tmp_path / "run" / "config.yaml"
    config.write_text(
        config.read_text().replace("  name: small_cnn\n", "  name: small_cnn\n  weights: ~nouser/x.pth\n")
    )
    assert "~nouser" in config.read_text()
    for step in (tmp_path / "run" / "checkpoints").glob("step-*"):
        made = manifest_of(step)["config"]
        rewrite(step, config=made | {"model": made["model"] | {"weights": "~nouser/x.pth"}})
    ended = typed("evaluate", "run")
    assert (ended.code, ended.err) == (0, "")


def test_no_command_shows_the_help(typed: Typed) -> None:
    """L01."""
    ended = typed()
    assert ended.code == 2
    assert "range-test" in ended.out + ended.err


def test_debug_adds_the_traceback_to_the_same_error(typed: Typed) -> None:
    plain, ended = typed("fit", "nope.yaml"), typed("fit", "nope.yaml", "--debug")
    assert ended.code == plain.code == 2
    assert ended.err.startswith("Traceback (most recent call last):\n")
    assert ended.err.endswith(plain.err)


@pytest.mark.parametrize("words", ["--help", "fit --help", "--version", "list models"])
@pytest.mark.parametrize(("to", "code"), [("> /dev/full", 5), ("| true", 0)])
def test_what_nobody_reads_or_no_disk_holds_is_no_bug(tmp_path: Path, words: str, to: str, code: int) -> None:
    line = f"set -o pipefail; {sys.executable} -m lrtrain {words} {to}"
    ended = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ("No space left on device" in ended.stderr) == (code == 5)


@pytest.mark.parametrize("to", ["| head -c 1", "2>&1 | head -c 1"])
def test_training_goes_on_where_own_code_prints_to_nobody(tmp_path: Path, to: str) -> None:
    (tmp_path / "loud.py").write_text(
        "import sys, torch\nclass Net(torch.nn.Linear):\n"
        "    def __init__(self, in_channels, num_classes):\n        super().__init__(64, num_classes)\n"
        "    def forward(self, x):\n        print('here', flush=True)\n        print('there', file=sys.stderr)\n"
        "        return super().forward(x.flatten(1))\n"
    )
    (tmp_path / "c.yaml").write_text(GOOD.replace("{name: small_cnn, width: 4}", "'loud:Net'"))
    line = f"set -o pipefail; {sys.executable} -m lrtrain fit c.yaml --out run {to}"
    ended = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    line = f"mkdir gone; cd gone; rmdir ../gone; {sys.executable} -m lrtrain preview {tmp_path}/c.yaml"
    (tmp_path / "c.yaml").write_text(GOOD)
    ended = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert_clear(Ended(ended.returncode, ended.stdout, ended.stderr), 5, "was deleted", "cd to another")


def test_without_a_folder_for_temporary_files_it_says_so(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose disk cannot be written, or is full: torch asks for one when it is imported."""
    import tempfile

    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    with monkeypatch.context() as lacking:
        lacking.setattr(tempfile, "gettempdir", none)
        lacking.setattr("lrtrain.commands.preview.run", lambda *_, **__: none())
        assert_clear(typed("preview", "c.yaml"), 5, "no folder for temporary files", "TMPDIR")
        lacking.setattr("lrtrain.commands.preview.run", lambda *_, **__: listed(3))  # type: ignore[arg-type]
        ended = typed("preview", "c.yaml")
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert "this is a bug in lrtrain: TypeError: 'int' object is not subscriptable" in ended.err
    assert "in listed, " in ended.err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files", "a.png"), ("too many files are open", "ulimit -n")),
        (RuntimeError("Too many open files. Communication with the workers is no longer possible."), ("ulimit -n",)),
        (OSError("Caught OSError in DataLoader worker process 0.\n[Errno 24] Too many open files"), ("ulimit -n",)),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ("out of memory", "Cannot allocate memory")),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), ("out of memory", "ulimit -v")),
        *(
            (OSError(number, os.strerror(number), "data/a"), (os.strerror(number), "'data/a'", "mount it again"))
            for number in (errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT, errno.ESHUTDOWN)
        ),
    ],
    ids=["files", "files of torch", "files in a worker", "a fork's memory", "a library's memory"]
    + ["a mount", "a folder of a server", "a server", "a server that let go"],
)
def test_what_the_machine_lacks_is_told(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, error: Exception, words: tuple[str, ...]
) -> None:
    def lacking(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("lrtrain.commands.preview.run", lacking)
    assert_clear(typed("preview", "c.yaml"), 5, *words)


@pytest.mark.parametrize("row", [LINES[1], LINES[18], LINES[24]], ids=lambda row: row[0])
def test_the_same_holds_for_a_real_process(
    lrtrain: Callable[..., Ended], tmp_path: Path, row: tuple[str, list[str], int, tuple[str, ...]]
) -> None:
    (tmp_path / "c.yaml").write_text(GOOD)
    assert_clear(lrtrain(*row[1]), row[2], *row[3])


CANARY = "from pathlib import Path\nPath('canary').touch()\nfrom lrtrain.models.small_cnn import small_cnn as net\n"
# Places of a config where an import path may stand.
PLACES = {
    "the model": ("model:", "model: {name: 'canary:net', width: 4}"),
    "the dataset": ("dataset:", "dataset: {name: 'canary:data'}"),
    "the optimizer": ("optimizer:", "optimizer: {name: 'canary:opt', lr: 0.05}"),
    "a schedule": ("schedule:", "schedule: {name: 'canary:lr', every: step}"),
    "a chain of schedulers": (
        "schedule:",
        "schedule: {name: ChainedScheduler, every: step, schedulers: [{name: 'canary:lr'}]}",
    ),
    "a transform": ("dataset:", "dataset: {name: digits, transforms: {train: ['canary:net']}}"),
    "a transform in a transform": (
        "dataset:",
        "dataset: {name: digits, transforms: {val: [{name: RandomApply, transforms: ['canary:net']}]}}",
    ),
}


@pytest.fixture
def elsewhere(typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory that somebody sent, and a module that its config names, which leaves a trace when imported."""
    (tmp_path / "canary.py").write_text(CANARY)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("canary", None)
    run = tmp_path / "sent"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(GOOD)
    (run / "metrics.jsonl").write_text("")
    return run


@pytest.mark.parametrize("place", PLACES, ids=list(PLACES))
def test_code_that_a_run_directory_names_is_not_run(typed: Typed, elsewhere: Path, place: str, tmp_path: Path) -> None:
    key, line = PLACES[place]
    (elsewhere / "config.yaml").write_text(
        "\n".join([*(o for o in GOOD.splitlines() if not o.startswith(key)), line, ""])
    )
    own = "lrtrain fit CONFIG --resume --out sent"
    assert_clear(typed("fit", "--resume", "--out", "sent"), 2, "names code outside lrtrain: 'canary:", own, "--trust")
    for command in (["fit"], ["fit", "--smoke"], ["preview"], ["range-test"]):
        assert_clear(typed(*command, "sent/config.yaml"), 2, "names code outside lrtrain: 'canary:", "say --trust")
    Path("link.yaml").symlink_to("sent/config.yaml")
    assert_clear(typed("preview", "link.yaml"), 2, "names code outside lrtrain: 'canary:", "say --trust")
    assert_clear(typed("fit", "sent/config.yaml", "--resume"), 2, "names code outside lrtrain", "say --trust")
    assert_clear(typed("evaluate", "sent"), 2, "names code outside lrtrain: 'canary:", "say --trust")
    (elsewhere / "checkpoints" / "step-00000001").mkdir()
    shutil.copy(elsewhere / "config.yaml", elsewhere / "checkpoints" / "step-00000001" / "c.yaml")
    assert_clear(typed("preview", "sent/checkpoints/step-00000001/c.yaml"), 2, "names code outside", "say --trust")
    shutil.rmtree(elsewhere / "checkpoints")
    (elsewhere / "metrics.jsonl").unlink()
    (elsewhere / "checkpoints").symlink_to("gone")  # as an archive may hold it
    assert_clear(typed("preview", "sent/config.yaml"), 2, "names code outside", "say --trust")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("asked", ["dataset=digits", "dataset={name: imagefolder, root: photos}"])
def test_nor_are_its_transforms_for_another_dataset_which_takes_them(
    typed: Typed, elsewhere: Path, asked: str, tmp_path: Path
) -> None:
    lines = [line for line in GOOD.splitlines() if not line.startswith("dataset:")]
    (elsewhere / "config.yaml").write_text("\n".join([*lines, PLACES["a transform in a transform"][1], ""]))
    ended = typed("evaluate", "sent", "--set", asked)
    assert_clear(ended, 2, "names code outside lrtrain: 'canary:net'", "say --trust")
    typed("check", "sent", "--set", asked)
    assert not (tmp_path / "canary").exists()


def test_a_config_of_ones_own_may_name_code_and_trust_allows_the_rest(
    typed: Typed, elsewhere: Path, tmp_path: Path
) -> None:
    own = GOOD.replace("{name: small_cnn, width: 4}", "{name: 'canary:net', width: 4}")
    (tmp_path / "c.yaml").write_text(own)
    shutil.rmtree(elsewhere)
    ended = typed("fit", "c.yaml", "--out", "run")
    assert ended.code == 0, ended.err
    assert (tmp_path / "canary").exists()
    assert "lrtrain evaluate run --trust" in ended.out
    assert typed("fit", "c.yaml", "--resume", "--out", "run").code == 0
    assert typed("fit", "--resume", "--out", "run").code == 2
    assert typed("fit", "--resume", "--out", "run", "--trust").code == 0
    assert typed("preview", "run/config.yaml", "--trust").code == 0
    assert typed("evaluate", "run", "--trust").code == 0


def test_processes_started_again_go_on_by_their_own_config(typed: Typed, elsewhere: Path, tmp_path: Path) -> None:
    from lrtrain.commands.start import start_fit
    from lrtrain.errors import ConfigError
    from lrtrain.sinks.run_dir import RunDir, mark_begun
    from lrtrain.world import World

    own = GOOD.replace("{name: small_cnn, width: 4}", "{name: 'canary:net', width: 4}")
    (tmp_path / "lrtrain.yaml").write_text(own)
    (elsewhere / "config.yaml").write_text(own)
    (elsewhere / "checkpoints" / "last.json").write_text("{}")
    again = World(0, 2, 0, restarts=1, launch="x")
    mark_begun(RunDir(elsewhere), World(0, 2, 0, launch="x"), ["w", "x"])
    for config in (None, tmp_path / "lrtrain.yaml"):
        started, resumed = start_fit(config, None, elsewhere, resume=False, world=again)
        assert resumed is not None
        assert started.config.model.name == "canary:net"
    with pytest.raises(ConfigError, match="names code outside lrtrain"):
        start_fit(None, None, elsewhere, resume=True, world=again)


@pytest.mark.parametrize("name", ["metrics.jsonl", "status.json", ".status.json.tmp", "checkpoints/last.json"])
def test_a_link_in_a_run_directory_does_not_lead_out_of_it(typed: Typed, elsewhere: Path, name: str) -> None:
    precious = elsewhere.parent / "precious"
    precious.write_text("mine")
    (elsewhere / name).unlink(missing_ok=True)
    (elsewhere / name).symlink_to(precious)
    assert_clear(
        typed("fit", "c.yaml", "--resume", "--out", "sent"), 4, "symbolic link", "precious", name.split("/")[-1]
    )
    assert precious.read_text() == "mine"


def test_a_run_through_a_link_goes_on(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")
    assert typed("fit", "c.yaml", "--out", "run").code == 0
    assert_clear(typed("fit", "c.yaml", "--out", "run"), 7, "is not empty hint `--resume` continues the run in it")
    assert typed("fit", "c.yaml", "--resume", "--out", "run").code == 0
    assert (tmp_path / "disk" / "config.yaml").exists()


def test_nothing_of_the_environment_is_left_in_a_run(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S15."""
    monkeypatch.setenv("SECRET_TOKEN", "hunter2-3f9a")
    assert typed("fit", "c.yaml", "--out", "run").code == 0
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or (b"hunter2" not in path.read_bytes() and b"SECRET" not in path.read_bytes()), path


# Calls that run what a file or a person says, or that can be tricked; by full name.
FORBIDDEN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"} | {
    "yaml.full_load", "tempfile.mktemp", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads"
} | {"torch.serialization.add_safe_globals", "shelve.open", "np.load", "numpy.load"}  # fmt: skip


@pytest.mark.parametrize("path", sorted((REPOSITORY / "lrtrain").rglob("*.py")), ids=lambda path: path.name)
def test_no_source_runs_what_a_file_says(path: Path) -> None:
    """S14. Import paths go through `lookup` alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", "")}
            assert not names & {"shelve", "marshal", "dill", "cloudpickle", "joblib"}, ast.unparse(node)
            assert "pickle" not in names or path.name == "weights.py", ast.unparse(node)
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert "add_safe_globals" not in name, ast.unparse(node)
        assert given.get("shell", "False") == "False", ast.unparse(node)
        if name in ("torch.load", "torch.hub.load_state_dict_from_url") or name.endswith(".get_state_dict"):
            assert given.get("weights_only") == "True", ast.unparse(node)
        elif name in ("np.load", "numpy.load"):
            assert given.get("allow_pickle") == "False", ast.unparse(node)
        else:
            assert name not in FORBIDDEN, ast.unparse(node)
        if name in ("importlib.import_module", "import_module"):
            assert path.name in ("lookup.py", "__init__.py"), ast.unparse(node)


def test_what_the_rule_forbids_it_finds(tmp_path: Path) -> None:
    for line in ("eval('1')", "import pickle", "torch.load('x')", "subprocess.run('x', shell=True)", "np.load('x')"):
        (tmp_path / "bad.py").write_text(line)
        with pytest.raises(AssertionError):
            test_no_source_runs_what_a_file_says(tmp_path / "bad.py")


def test_code_pickled_into_weights_is_not_run(typed: Typed, tmp_path: Path) -> None:
    """K14, through the command."""
    import torch

    class Code:
        def __reduce__(self) -> object:
            return os.system, (f"touch {tmp_path / 'canary'}",)

    torch.save({"conv1.weight": Code()}, tmp_path / "w.pth")
    words = ("more than tensors and plain values, and is not unpickled", "module.state_dict()")
    assert_clear(typed("fit", "c.yaml", "--set", "model.weights=w.pth"), 4, *words)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["preview", "c.yaml", "--csv", "c.yaml"], "--csv would write over the config: 'c.yaml'"),
        (["preview", "c.yaml", "--csv", "./link.yaml"], "--csv would write over the config"),
        (["preview", "c.yaml", "--csv", "same.png", "--plot", "./same.png"], "--plot would write over --csv"),
        (["check", "c.yaml", "--json", "x", "--write-skip-list", "x"], "--write-skip-list would write over --json"),
        (["check", "c.yaml", "--json", "c.yaml"], "--json would write over the config"),
        (["check", "c.yaml", "--json", "m.csv"], "--json would write over a file that the config names"),
        (["range-test", "c.yaml", "--json", "c.yaml"], "--json would write over the config"),
    ],
)
def test_no_output_is_written_over_another_or_over_what_is_read(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, args: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = "{epochs: 1, batch_size: 64, model: small_cnn, dataset: {name: csv, manifest: m.csv}, optimizer: {name: SGD, lr: 0.1}}"
    (tmp_path / "c.yaml").write_text(config)
    (tmp_path / "m.csv").write_text("path,label\n")
    (tmp_path / "link.yaml").symlink_to("c.yaml")
    assert_clear(Typed(monkeypatch, capfd)(*args), 2, words, "name another file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yaml", "link.yaml", "m.csv"]
    assert (tmp_path / "c.yaml").read_text() == config


def test_an_output_of_ones_own_may_be_written_again(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(
        "{epochs: 1, batch_size: 64, model: small_cnn, dataset: digits, optimizer: {name: SGD, lr: 0.1}}"
    )
    for _ in range(2):
        assert Typed(monkeypatch, capfd)("preview", "c.yaml", "--csv", "digits").code == 0


def test_a_package_that_cannot_be_imported_is_no_bug(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("steps: 2\nbatch_size: 8\nmodel: small_cnn\ndataset: digits\noptimizer: SGD\n")
    words = [sys.executable, "-m", "lrtrain", "fit", "c.yaml", "--set", "optimizer={name: SGD, lr: 0.1}"]
    env = environment(TORCH_LOGS="nonsense")
    ended = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 5, ended.stderr
    assert "a package cannot be imported: ValueError: Invalid log settings: nonsense" in " ".join(ended.stderr.split())
    assert "TORCH_LOGS" in ended.stderr


@pytest.mark.parametrize("place", [".", "site-packages"])
def test_an_error_of_ones_own_code_is_no_bug_wherever_it_is_installed(tmp_path: Path, place: str) -> None:
    package = tmp_path / place / "mine"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "sgd.py").write_text(
        "import torch\nclass Mine(torch.optim.SGD):\n    calls = 0\n    def step(self, closure=None):\n"
        "        Mine.calls += 1\n        if Mine.calls > 30:\n            raise KeyError('oops')\n"
    )
    (tmp_path / "c.yaml").write_text(
        "{steps: 60, batch_size: 8, model: small_cnn, dataset: digits, optimizer: {name: 'mine.sgd:Mine', lr: 0.1}}"
    )
    words = [sys.executable, "-m", "lrtrain", "fit", "c.yaml"]
    env = environment(PYTHONPATH=os.pathsep.join((str(REPOSITORY), str(package.parent))))
    ended = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    assert "KeyError: 'oops'" in ended.stderr
    assert "sgd.py':7" in ended.stderr


def test_own_code_that_ends_the_process_is_told(tmp_path: Path) -> None:
    """A training script without `if __name__ == "__main__"` does, when something is imported from it."""
    (tmp_path / "script.py").write_text("import argparse\nargparse.ArgumentParser().parse_args(['-h'])\n")
    (tmp_path / "c.yaml").write_text(
        "{steps: 2, batch_size: 8, model: 'script:net', dataset: digits, optimizer: {name: SGD, lr: 0.1}}"
    )
    words = [sys.executable, "-m", "lrtrain", "fit", "c.yaml"]
    ended = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert_clear(Ended(ended.returncode, ended.stdout, ended.stderr), 2, "SystemExit: 0", "script.py':2")


@pytest.mark.parametrize("name", ["BrokenPipeError", "StopIteration", "GeneratorExit", "SystemExit"])
def test_own_code_may_raise_what_means_something_else_elsewhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    module = f"raises_{name}"
    (tmp_path / f"{module}.py").write_text(
        "import torch\nclass Net(torch.nn.Linear):\n    calls = 0\n"
        "    def __init__(self, in_channels, num_classes):\n        super().__init__(64, num_classes)\n"
        f"    def forward(self, x):\n        Net.calls += 1\n        if Net.calls > 6:\n            raise {name}\n"
        "        return super().forward(x.flatten(1))\n"
    )
    (tmp_path / "c.yaml").write_text(
        f"{{steps: 20, batch_size: 8, model: '{module}:Net', dataset: digits, optimizer: {{name: SGD, lr: 0.1}}}}"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    ended = Typed(monkeypatch, capfd)("fit", "c.yaml", "--out", "run")
    assert_clear(ended, 2, f"code of your own fails: {name}", f"{module}.py':9")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 2
