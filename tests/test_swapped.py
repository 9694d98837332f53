"""What another process puts in a file's place after it was looked at is not followed out of the run, or waited for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from lrtrain.checkpoint import folder, format
from lrtrain.commands import fit, start
from lrtrain.commands.signals import stop_requests
from lrtrain.data.shard_index import scanned
from lrtrain.data.shards import _Descriptor
from lrtrain.errors import ConfigError, EnvironmentFault, RunDirError
from lrtrain.models.weights import _safetensors
from lrtrain.sinks.jsonl import _opened_to_append
from lrtrain.sinks.run_dir import RunDir, mark_begun
from lrtrain.world import World

CONFIG = """model: {name: "MODEL"}
dataset: {name: FakeData, val_fraction: 0.1}
batch_size: 8
epochs: 1
optimizer: {name: SGD, lr: 0.1}
"""


def small_config(*more: str) -> start.Start:
    """Of two steps, a checkpoint after each, of which one is kept."""
    longer = "steps: 2\nworkers: 0\ncheckpoint: {every: 1step, keep: 1}"
    Path("c.yaml").write_text(CONFIG.replace("epochs: 1", longer).replace("MODEL", "small_cnn"))
    return start.start(
        Path("c.yaml"), ["dataset.size=40", "dataset.num_classes=2", "dataset.image_size=[3,8,8]", *more]
    )


def train(begun: start.Start, out: Path) -> int:
    with stop_requests() as requests:
        return fit.run(begun, out, None, requests)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("answers", [(True, False), (False, True)])
def test_a_config_that_is_moved_out_of_a_run_while_it_is_read_is_no_own_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: tuple[bool, bool]
) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.replace("MODEL", "subprocess:run"))
    left = iter(answers)
    monkeypatch.setattr(start, "is_from_a_run", lambda path: next(left))
    with pytest.raises(ConfigError, match="names code outside lrtrain: 'subprocess:run'"):
        start.start(tmp_path / "config.yaml", None)


def test_processes_started_again_run_no_code_that_the_config_has_been_given_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "c.yaml"
    own.write_text(CONFIG.replace("MODEL", "mine:net"))
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    mark_begun(run, World(0, 2, 0, launch="x"), ["x"])

    def again(
        model: str, *overrides: str, trust: bool = False, mode: int = 0o777, data: str = "FakeData", given: Path = own
    ) -> str:
        run.config.write_text(CONFIG.replace("MODEL", model).replace("FakeData", data))
        run.path.chmod(mode)
        run.config.chmod(0o644)
        world = World(0, 2, 0, restarts=1, launch="x")
        started, _ = start.start_fit(given, overrides, run.path, resume=False, trust=trust, world=world)
        return started.config.model.name

    for refused in ("subprocess:run", "other:net"):
        with pytest.raises(ConfigError, match="names code outside lrtrain"):
            again(refused)
        assert again(refused, trust=True) == refused
    assert again("mine:net") == "mine:net"
    with pytest.raises(ConfigError, match="names code outside lrtrain"):
        again("mine:net", data="other:images")
    sent = tmp_path / "sent" / "config.yaml"
    sent.parent.mkdir()
    sent.write_text(own.read_text())
    (sent.parent / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match="names code outside lrtrain"):
        again("mine:net", given=sent)
    assert again("other:net", "model.name=other:net") == "other:net"
    own.unlink()
    assert again("other:net", mode=0o755) == "other:net"  # nobody else can have written it
    for mode in (0o775, 0o757):
        with pytest.raises(ConfigError, match="names code outside lrtrain"):
            again("other:net", mode=mode)
    monkeypatch.setattr("os.geteuid", lambda: 12_345)
    with pytest.raises(ConfigError, match="names code outside lrtrain"):
        again("other:net", mode=0o755)
    assert again("small_cnn") == "small_cnn"
    with pytest.raises(ConfigError, match=r"see that .*c\.yaml still names it, or if you know the code, say --trust"):
        again("mine:net")


def pipe(path: Path) -> int:
    os.mkfifo(path)
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # that somebody reads


@pytest.mark.parametrize("make", [os.mkfifo, pipe, lambda path: path.symlink_to("elsewhere")])
def test_a_log_is_no_link_or_pipe_when_it_is_opened_either(tmp_path: Path, make: Callable[[Path], int | None]) -> None:
    (tmp_path / "elsewhere").write_text("mine")
    reader = make(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match=r"symbolic links|No such device|no regular file"):
        _opened_to_append(tmp_path / "metrics.jsonl")
    if reader is not None:
        os.close(reader)
    assert (tmp_path / "elsewhere").read_text() == "mine"


def test_a_pointer_is_written_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / ".tmp-last.json").symlink_to(tmp_path / "elsewhere")
    folder.point(tmp_path, "last", tmp_path / "step-00000001")
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert not (tmp_path / "last.json").is_symlink()
    assert folder.pointed(tmp_path, "last") == tmp_path / "step-00000001"


def test_a_shard_that_has_become_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(OSError, match="it is no regular file"):
        _Descriptor(str(tmp_path / "a.tar"))
    found, problems = scanned(str(tmp_path / "a.tar"), None)
    assert found is None
    assert "it is no regular file" in str(problems[0])


@pytest.mark.parametrize(
    ("module", "name", "part", "since"),
    [
        (fit, "create", "", ""),
        (fit, "show_plan", "", ""),
        (format, "write", "checkpoints", "step-00000002/manifest.json"),
        (folder, "point", "checkpoints", "last.json"),
        (folder, "point", "checkpoints", "best.json"),
    ],
)
def test_another_run_that_is_put_in_the_place_of_this_one_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, part: str, since: str
) -> None:
    """Once it says `since` that there is step 2."""
    monkeypatch.chdir(tmp_path)
    begun = small_config()
    other, out = tmp_path / "other", tmp_path / "out"
    assert train(small_config("steps=4", "checkpoint.keep=9"), other) == 0
    before = contents(other)
    there, said = getattr(module, name), out / part / since

    def swapped(*args: object, **more: object) -> object:
        done = there(*args, **more)
        if not since or (said.exists() and "step-00000002" in f"{said}{said.read_text()}"):
            (out / part).rename(tmp_path / "away")
            (out / part).symlink_to(other / part)
            monkeypatch.setattr(module, name, there)
        return done

    monkeypatch.setattr(module, name, swapped)
    with pytest.raises((RunDirError, EnvironmentFault), match=r"is not empty|lock was removed or replaced"):
        train(begun, out)
    assert contents(other) == before


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds an open file in /proc")
def test_weights_are_read_from_the_file_that_was_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"w": torch.ones(3)}, file)

    def swap(_: object) -> None:
        file.unlink()
        os.mkfifo(file)

    assert _safetensors(file, swap)[0]["w"].tolist() == [1.0] * 3
