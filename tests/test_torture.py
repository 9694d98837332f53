"""scripts/torture does what it says, and lrtrain survives a short version of it."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lrtrain.checkpoint import folder, format
from tests.conftest import REPOSITORY, Ended
from torture_parts import child
from torture_parts.case import Case, Found, numbered, spread
from torture_parts.compare import differences, lr_differences, newest_step, read_manifest
from torture_parts.reference import BASE, VARIANTS, config_of, make_images
from torture_parts.sections import SECTIONS
from torture_parts.sections.controls import sealed
from torture_parts.sections.order import broken_rules
from torture_parts.sections.planted import BUGS, QUICK, Bug, patched
from torture_parts.table import totals
from torture_parts.trial import last_words
from torture_parts.watch import _filter, supported

watching = pytest.mark.skipif(bool(supported()), reason=f"processes cannot be watched here: {supported()}")


def commit() -> list[str]:
    """What a save does, in the order that is safe."""
    step = 10
    folder = f"checkpoints/.tmp-{step:08d}"
    files = [f"{folder}/{name}" for name in ("model.safetensors", "manifest.json")]
    written = [f"{done} {file}" for file in files for done in ("create", "write", "fsync")]
    pointer = "checkpoints/.tmp-last.json"
    pointed = [f"{done} {pointer}" for done in ("create", "write", "fsync")]
    return [
        "write metrics.jsonl",
        "fsync metrics.jsonl",
        f"mkdir {folder}",
        *written,
        f"fsync {folder}",
        f"rename {folder} -> checkpoints/step-{step:08d}",
        "fsync checkpoints",
        *pointed,
        f"rename {pointer} -> checkpoints/last.json",
        "fsync checkpoints",
        "unlink checkpoints/step-00000000/model.safetensors",
        "rmdir checkpoints/step-00000000",
    ]


def test_the_safe_order_breaks_no_rule() -> None:
    assert broken_rules(commit()) == []
    exchanged = [words.replace("rename checkpoints/.tmp-0", "exchange checkpoints/.tmp-0") for words in commit()]
    assert broken_rules(exchanged) == []


@pytest.mark.parametrize("left_out", [words for words in dict.fromkeys(commit()) if words.startswith("fsync")])
def test_every_fsync_that_is_left_out_breaks_a_rule(left_out: str) -> None:
    assert broken_rules([words for words in commit() if words != left_out])


def test_a_pointer_before_the_commit_and_a_deletion_before_the_pointer_break_a_rule() -> None:
    begin = commit().index("fsync checkpoints")
    swapped = commit()
    swapped.insert(len(swapped) - 3, swapped.pop(begin))  # the commit's name is durable after last.json is
    assert any("step-00000010 is not durable" in found for found in broken_rules(swapped))
    assert any("last.json is not durable" in found for found in broken_rules([*commit()[:-3], *commit()[-2:]]))


@pytest.mark.parametrize("number", range(0, 60, 7))
@pytest.mark.parametrize("reads", [False, True])
def test_the_kernels_program_asks_about_changes_and_nothing_else(number: int, reads: bool) -> None:
    always, openat = [1, 18, 74, 42], 57
    wanted = number in always
    assert _answer(_filter(always, openat, reads), number, 0) == wanted
    assert _answer(_filter(always, openat, reads), openat, 0o100) is True
    assert _answer(_filter(always, openat, reads), openat, 1) is True
    assert _answer(_filter(always, openat, reads), openat, 0) is reads


def _answer(program: bytes, number: int, flags: int) -> bool:
    """Run a BPF program on a system call: whether it asks."""
    instructions = [struct.unpack_from("HBBI", program, i) for i in range(0, len(program), 8)]
    at, value = 0, 0
    while True:
        code, yes, no, k = instructions[at]
        at += 1
        if code == 0x20:
            value = {0: number, 32: flags}[k]
        elif code == 0x15:
            at += yes if value == k else no
        elif code == 0x45:
            at += yes if value & k else no
        else:
            return k == 0x7FC00000


def test_every_planted_bug_fits_the_code_as_it_is(tmp_path: Path) -> None:
    assert len(BUGS) == 15
    assert len({bug.name for bug in BUGS}) == 15
    assert set(QUICK) <= {bug.name for bug in BUGS}
    for i, bug in enumerate(BUGS):
        package = patched(bug, tmp_path / str(i))
        compile((package / "lrtrain" / bug.file).read_text(), bug.file, "exec")
        shutil.rmtree(package)


def test_a_bug_that_does_not_fit_the_code_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 0 times 'no such line', not once"):
        patched(Bug("name", "cli.py", "no such line", "", "how", lambda trial: None), tmp_path)


def saved(root: Path, step: int = 10, value: float = 1.0, **manifest: object) -> Path:
    """A run directory with one checkpoint."""
    parts = {"model": {"a": torch.full((3,), value), "b": torch.zeros(2)}}
    root.mkdir(exist_ok=True)
    path = format.write(root / "checkpoints", step, parts, {"channels": 3, **manifest})
    for name in ("last", "best"):
        folder.point(root / "checkpoints", name, path)
    (root / "metrics.jsonl").write_text('{"step": 1}\n')
    (root / "config.yaml").write_text("seed: 1\nworkers: 2\n")
    (root / "status.json").write_text(json.dumps({"state": "done", "step": step}))
    return path


def test_the_comparison_sees_a_single_bit_and_names_the_tensor(tmp_path: Path) -> None:
    saved(tmp_path / "one")
    saved(tmp_path / "same")
    (tmp_path / "same" / "config.yaml").write_text("seed: 1\nworkers: 0\n")
    assert differences(tmp_path / "one", tmp_path / "same") == []
    saved(tmp_path / "other", value=float(np.nextafter(np.float32(1), np.float32(2))))
    assert differences(tmp_path / "one", tmp_path / "other") == [
        f"{name}: 1 of 2 tensors of model differ, first a, by up to 1.19e-07" for name in ("last", "best")
    ]


def test_the_comparison_sees_manifests_pointers_logs_and_what_was_left(tmp_path: Path) -> None:
    saved(tmp_path / "one")
    saved(tmp_path / "manifest", channels=1)
    assert "channels in the manifest is 1, not 3" in differences(tmp_path / "one", tmp_path / "manifest")[0]
    saved(tmp_path / "pointer")
    (tmp_path / "pointer" / "checkpoints" / "best.json").unlink()
    assert differences(tmp_path / "one", tmp_path / "pointer") == ["best: is nothing, not step-00000010"]
    saved(tmp_path / "log")
    (tmp_path / "log" / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    (found,) = differences(tmp_path / "one", tmp_path / "log")
    assert found == 'metrics.jsonl differs from line 2 on: {"step": 2}, not no line'
    saved(tmp_path / "left")
    (tmp_path / "left" / "checkpoints" / ".tmp-00000010-5").mkdir()
    assert differences(tmp_path / "one", tmp_path / "left") == [".tmp-00000010-5 was left in checkpoints/"]


def test_a_damaged_checkpoint_does_not_count(tmp_path: Path) -> None:
    assert newest_step(tmp_path) is None
    saved(tmp_path, 10)
    path = saved(tmp_path, 20)
    assert newest_step(tmp_path) == 20
    save_file({"a": torch.zeros(1)}, path / "model.safetensors")
    assert newest_step(tmp_path) == 10


def test_a_manifest_that_is_sealed_again_is_whole(tmp_path: Path) -> None:
    path = saved(tmp_path)
    manifest = read_manifest(path)
    del manifest["channels"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert newest_step(tmp_path) is None
    sealed(path, manifest)
    assert newest_step(tmp_path) == 10
    assert "channels" not in format.verify(path).manifest


def test_an_lr_that_is_one_ulp_off_is_seen() -> None:
    planned = [[float(lr).hex()] for lr in (0.1, 0.2, 0.3)]
    assert lr_differences(planned, planned[1:], 1) == []
    (found,) = lr_differences(planned, [[float(np.nextafter(0.2, 1)).hex()]], 1)
    assert found.startswith("the LR of step 2 was 0x1.999999999999bp-3, not 0x1.999999999999ap-3")
    assert lr_differences(planned, [*planned, ["0x0p+0"]], 0) == ["the LR of step 4 was 0x0p+0, not none"]


def test_only_updates_of_the_model_are_counted() -> None:
    seen: list[int] = []
    hook = child._counting([lambda count, optimizer: seen.append(count)])
    model, probe = torch.nn.Linear(2, 2), torch.zeros(1, requires_grad=True)
    for parameters in (model.parameters(), [probe], model.parameters()):
        hook(torch.optim.SGD(parameters, lr=0.1))
    assert seen == [1, 2]


def test_configs_of_variants_change_the_base_and_leave_it_alone(tmp_path: Path) -> None:
    before = json.dumps(BASE)
    for variant in VARIANTS:
        config = config_of(variant, tmp_path)
        assert config["dataset"]["root"] == str(tmp_path)
        assert None not in config.values()
    assert config_of("base", tmp_path, {"checkpoint.every": "5step", "ema": None})["checkpoint"]["every"] == "5step"
    assert json.dumps(BASE) == before


def test_images_are_the_same_for_a_seed_and_as_many_as_sixty_steps_need(tmp_path: Path) -> None:
    for name in ("one", "same"):
        make_images(tmp_path / name, 3)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*g"))
    assert len([file for file in files if file.parts[0] == "train"]) == 160
    assert {file.suffix for file in files} == {".jpg", ".png"}
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "same" / file).read_bytes() for file in files)


def test_small_things() -> None:
    assert spread(range(10), 3) == [0, 4, 9]
    assert spread([1, 2], 3) == [1, 2]
    cases = numbered("steps", [("a", print), ("b", print)])
    assert [(case.section, case.number) for case in cases] == [("steps", 0), ("steps", 1)]
    one, other = (Found(Case("steps", i, "", print)) for i in range(2))
    one.counts["kills"], other.counts["kills"], other.figures["x"] = 2, 3, 1.5
    assert totals([one, other]) == ({"kills": 5}, {"x": 1.5})
    assert last_words("a\nerror: b\n  at c\n") == "error: b / at c"
    assert last_words("") == "it said nothing"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "steps,flip"], f"--only flip: choose from {','.join(SECTIONS)}"),
        (["--jobs", "0"], "--jobs is at least 1"),
        (["--case", "3"], "--case needs --only with one section"),
        (["--quick", "--full"], "not allowed with"),
    ],
)
def test_a_mistake_in_the_arguments_ends_it_at_once(
    script: Callable[..., Ended], arguments: list[str], message: str
) -> None:
    ended = script("torture", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert "Traceback" not in ended.err


@watching
def test_a_quick_torture_is_survived(script: Callable[..., Ended], tmp_path: Path) -> None:
    ended = script("torture", "--quick", "--work", tmp_path, "--json", "found.json")
    assert ended.code == 0, ended.out + ended.err
    assert "everything was survived" in ended.out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["left_out"] == []
    assert {case["section"] for case in found["cases"]} == set(SECTIONS)
    assert found["counts"]["kills"] >= 30
    assert found["counts"].get("moments without a checkpoint", 0) == 0
    assert found["counts"]["bugs caught"] == found["counts"]["bugs planted"] == len(QUICK)
    assert not list(tmp_path.glob("lrtrain-torture-*"))


@watching
def test_what_is_not_survived_is_told_with_the_way_to_see_it_again(
    script: Callable[..., Ended], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    bug = next(bug for bug in BUGS if bug.name == "no log truncation")
    patched(bug, broken)
    shutil.copytree(REPOSITORY / "scripts", broken / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    chosen = ("--quick", "--only", "steps", "--case", "3", "--work", tmp_path, "--jobs", "1")
    ended = script(str(broken / "scripts" / "torture"), *chosen)
    assert ended.code == 1
    assert "metrics.jsonl was cut or changed while training wrote to it" in " ".join(ended.out.split())
    assert "again  scripts/torture --quick --only steps --case 3" in ended.out
    assert "1 of 1 cases were not survived" in ended.out
    assert list(tmp_path.glob("lrtrain-torture-*/steps-3/run/metrics.jsonl"))
