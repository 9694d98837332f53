"""SIGKILL: at every step, before every change of a file, in evaluation, while resuming, again and again."""

from __future__ import annotations

import random
from functools import partial

from torture_parts.case import Case, Found, numbered, spread
from torture_parts.lab import Lab
from torture_parts.reference import KILLED_VARIANTS, STEPS
from torture_parts.trial import Trial, first_with

COMMIT = "rename checkpoints/.tmp-00000000 -> checkpoints/step-00000000"
EVALUATION_BATCHES = 12  # of the uninterrupted run: 32 images in batches of 8, three times
RESUMED_AT = 33
CHAIN = 5


def steps(lab: Lab) -> list[Case]:
    """At every optimizer step: before the update where its number is odd, after it where it is even."""
    chosen = spread(range(1, STEPS + 1), 4 if lab.quick else STEPS)
    return numbered("steps", [(f"killed at step {k}, workers {k % 3}", partial(_at_step, k)) for k in chosen])


def _at_step(k: int, trial: Trial) -> None:
    trial.of("base")
    trial.killed(trial.fit(at_step=k, after=k % 2 == 0, workers=k % 3))
    trial.finishes(workers=(k + 1) % 3)


def evaluation(lab: Lab) -> list[Case]:
    """Before every batch that is evaluated."""
    chosen = spread(range(1, EVALUATION_BATCHES + 1), 2 if lab.quick else EVALUATION_BATCHES)
    return numbered("evaluation", [(f"killed before batch {j}", partial(_in_evaluation, j)) for j in chosen])


def _in_evaluation(j: int, trial: Trial) -> None:
    trial.of("base")
    trial.killed(trial.fit(at_evaluation=j, workers=j % 2))
    trial.finishes()


def files(lab: Lab) -> list[Case]:
    """Before every change that the whole run makes to its files, and in the middle of every write of a checkpoint."""
    seen = lab.whole().seen
    whole = [(n, False) for n in range(len(seen))]
    torn = [(n, True) for n, words in enumerate(seen) if words.startswith("write checkpoints/")]
    chosen = [*_of_a_save(seen), *spread(torn, 3)] if lab.quick else [*whole, *torn]
    return numbered(
        "files",
        [(f"killed {'in' if half else 'before'} {n}: {seen[n]}", partial(_at_change, n, half)) for n, half in chosen],
    )


def _of_a_save(seen: list[str]) -> list[tuple[int, bool]]:
    """A change of each kind, of the save that also moves best.json and prunes."""
    begin = first_with(seen, "mkdir checkpoints/.tmp-00000020")
    kinds: dict[str, int] = {}
    for n in range(begin - 1, len(seen)):
        if seen[n].startswith("mkdir checkpoints/.tmp-00000030"):
            break
        kinds.setdefault(seen[n].split("safetensors")[0].rsplit("/", 1)[0], n)
        if seen[n].startswith(("rename", "rmdir")):
            kinds[seen[n]] = n
    return [(n, False) for n in sorted(set(kinds.values()))]


def _at_change(n: int, torn: bool, trial: Trial) -> None:
    trial.of("base")
    answer = trial.fit(watch=True, kill_at=n, torn=torn)
    if not answer.hit:
        trial.problem(f"change {n} did not happen; the run made {len(answer.seen)}")
    if n <= first_with(trial.lab.whole().seen, COMMIT):
        _before_the_first(trial)
        return
    trial.killed(answer)
    trial.finishes()


def _before_the_first(trial: Trial) -> None:
    """Nothing was saved: resuming begins at the first step, or says that there is nothing to resume."""
    trial.found.counts["killed before the first checkpoint"] += 1
    answer = trial.fit(resume=True)
    if answer.code == 0:
        trial.same()
        return
    trial.ends(answer, 4)
    trial.says("error: .*no (checkpoint|config.yaml|run)")


def resume(lab: Lab) -> list[Case]:
    """Before everything that a resumed process opens or changes, up to the end of its first save."""
    seen = _seen_while_resuming(lab)
    chosen = spread(range(len(seen)), 5 if lab.quick else len(seen))
    return numbered("resume", [(f"killed before {n}: {seen[n]}", partial(_while_resuming, n)) for n in chosen])


def _seen_while_resuming(lab: Lab) -> list[str]:
    """Recorded once."""
    folder = lab.work / "recorded"
    folder.mkdir()
    with lab.zygote() as zygote:
        trial = Trial(lab, Found(Case("resume", -1, "recorded", print)), folder, zygote)
        trial.continues(lab.killed("base", RESUMED_AT), "base")
        seen = trial.fit(resume=True, watch=True, reads=True).seen
    saved = first_with(seen, "rename checkpoints/.tmp-last.json")
    return seen[: saved + first_with(seen[saved:], "rename .status.json.tmp") + 1]


def _while_resuming(n: int, trial: Trial) -> None:
    trial.continues(trial.lab.killed("base", RESUMED_AT), "base")
    answer = trial.fit(resume=True, watch=True, reads=True, kill_at=n)
    trial.killed(answer)
    trial.finishes()


def chains(lab: Lab) -> list[Case]:
    """Five kills of any kind, one after the other."""
    count = 1 if lab.quick else 12
    return numbered("chains", [(f"killed {CHAIN} times, {i}", partial(_chain, lab.seed + i)) for i in range(count)])


def _chain(seed: int, trial: Trial) -> None:
    draw = random.Random(seed)
    trial.of("base")
    for link in range(CHAIN):
        resumed = link > 0
        way = draw.choice(["step", "change", "moment"] if trial.lab.watching else ["step", "moment"])
        if way == "step":
            how = {"at_step": draw.randint(3, 12), "after": draw.random() < 0.5}
        elif way == "change":
            # Beyond the first commit, where there is something to go on from.
            how = {"watch": True, "kill_at": draw.randint(34, 90)}
        else:
            how = {"die_after_seconds": draw.uniform(0.6, 0.9) * trial.lab.whole().seconds}
        answer = trial.fit(resume=resumed, workers=draw.randint(0, 2), **how)
        if answer.code == 0:
            break  # it was faster than its killer
        trial.killed(answer)
    trial.finishes()


def moments(lab: Lab) -> list[Case]:
    """At any moment of the run, by the clock."""
    draw = random.Random(lab.seed)
    count, seconds = 2 if lab.quick else 40, lab.whole().seconds
    chosen = [draw.uniform(0.1, 1.0) * seconds for _ in range(count)]
    return numbered(
        "moments", [(f"killed after {s:.3f} s, {i}", partial(_at_moment, s, i)) for i, s in enumerate(chosen)]
    )


def _at_moment(seconds: float, i: int, trial: Trial) -> None:
    trial.of("base")
    answer = trial.fit(die_after_seconds=seconds, workers=i % 3)
    checkpoints = trial.run / "checkpoints"
    if answer.code == 0:
        trial.same()
    elif not list(checkpoints.glob("step-*")):
        _before_the_first(trial)
    else:
        trial.killed(answer)
        trial.finishes()


def variants(lab: Lab) -> list[Case]:
    """Other optimizers, schedules, precisions and two processes, killed at a few steps and changes of files."""
    draw = random.Random(lab.seed + 1)
    named = []
    for variant in KILLED_VARIANTS[-2:] if lab.quick else KILLED_VARIANTS:
        for k in sorted(draw.sample(range(2, 26), 1 if lab.quick else 6)):
            named.append((f"{variant}: killed at step {k}", partial(_variant_at_step, variant, k)))
        seen = lab.whole(variant).seen
        if seen:
            for n in sorted(draw.sample(range(first_with(seen, COMMIT) + 1, len(seen)), 1 if lab.quick else 6)):
                named.append((f"{variant}: killed before {n}: {seen[n]}", partial(_variant_at_change, variant, n)))
    return numbered("variants", named)


def _variant_at_step(variant: str, k: int, trial: Trial) -> None:
    trial.of(variant)
    # Of two processes only the second one is killed every other time; the first one must notice.
    one = {"only_rank": 1} if variant == "two ranks" and k % 2 else {}
    answer = trial.fit(at_step=k, **one)
    if one:
        trial.found.counts["kills"] += 1
        trial.ends(answer, 8)
        trial.still_valid()
    else:
        trial.killed(answer)
    trial.finishes()


def _variant_at_change(variant: str, n: int, trial: Trial) -> None:
    trial.of(variant)
    trial.killed(trial.fit(watch=True, kill_at=n))
    trial.finishes()
