"""The shipped configs, damaged as text and as bytes: loaded, and where they load, planned."""

from __future__ import annotations

import random
import re
from pathlib import Path

from fuzz_parts.damage import damaged
from lrtrain.config.load import load
from lrtrain.lookup import names
from lrtrain.schedule.curve import GroupLR
from lrtrain.schedule.plan import make_plan

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MOST_STEPS, PER_EPOCH = 20_000, 15
_TOKEN = re.compile(r"[\w.%-]+|[^\w\s]")
_ODD = (
    *("9" * n for n in (9, 19, 25, 300, 5000)),
    *("-1", "0", "0.0", "1e999", "-1e999", "1e-999", ".inf", "-.inf", ".nan", "0x" + "f" * 300, "1e308", "1_0"),
    *("true", "null", "~", "''", '""', "[]", "{}", "[[]]", "{a: {}}", "yes", "5ep", "0ep", "1e9ep", "100%", "7step"),
    *("&a ", "*a", "!!python/object/apply:os.system [x]", "!x ", "<<: {a: 1}", "? ", "---", "...", "|", ">", "@", "`"),
    *("é", "\u202e", "\ufeff", "\x85", "\x07", "\U0001f600", '"\\ud800"', '"\\0"', '"\\UFFFFFFFF"', '"\\e[31m"'),
    *("a" * 3000, "[" * 3000, "{a: " * 300, "- " * 300, "rest", "epoch", "step", "pkg.mod:attr", "os:system", "timm/x"),
    *('"' + "t**" * 30 + 't"', '"1/t"', '"-t"', '"exp(t*t)"', '"t if t else"', "[1ep, 1ep]", "[5ep, 3step]"),
)  # fmt: skip


class Tries:
    """Makes and reads configs."""

    def __init__(self) -> None:
        self._texts = [path.read_text(encoding="utf-8") for path in sorted(CONFIGS.glob("*.yaml"))]
        self._names = [*names("scheduler"), *names("optimizer"), "resnet18", "imagefolder", "RandomCrop"]

    def make(self, noise: random.Random, case: Path) -> None:
        """A config at `case`."""
        text, other = noise.choice(self._texts), noise.choice(self._texts)
        text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
        for _ in range(noise.choice((1, 1, 1, 1, 2, 4))):
            text = self._edited(text, noise, other)
        data = text.encode("utf-8", "surrogatepass")
        case.write_bytes(damaged(data, noise, other.encode()) if noise.random() < 0.2 else data)

    def _edited(self, text: str, noise: random.Random, other: str) -> str:
        lines, tokens = text.splitlines(keepends=True), list(_TOKEN.finditer(text))
        if not lines or not tokens:
            return other
        line, token = noise.randrange(len(lines)), noise.choice(tokens)
        if noise.random() < 0.6:  # a token becomes another, an odd one, a name or nothing
            swapped = noise.choice(list(_TOKEN.finditer(other)) or tokens).group()
            new = noise.choice((swapped, noise.choice(_ODD), noise.choice(_ODD), noise.choice(self._names), ""))
            return text[: token.start()] + new + text[token.end() :]
        edits = (
            lambda: [*lines[:line], lines[line], *lines[line:]],
            lambda: [*lines[:line], *lines[line + 1 :]],
            lambda: [*lines[:line], " " * noise.randrange(1, 5) + lines[line], *lines[line + 1 :]],
            lambda: [*lines[:line], lines[line].lstrip(), *lines[line + 1 :]],
            lambda: [*lines[:line], "\t" + lines[line], *lines[line + 1 :]],
            lambda: [*lines[:line], noise.choice(other.splitlines(keepends=True)), *lines[line:]],
            lambda: [*lines[:line], *other.splitlines(keepends=True)[line:]],
        )
        return "".join(noise.choice(edits)())

    def read(self, case: Path) -> None:
        """Load and plan it, as far as that needs no data."""
        config = load(case)
        if (config.steps or (config.epochs or 0) * PER_EPOCH) <= MOST_STEPS:
            momentum = config.optimizer.args.get("momentum")
            known = momentum if isinstance(momentum, float) else None
            plan = make_plan(config, [GroupLR("default", config.optimizer.lr, known)], PER_EPOCH)
            plan.lrs(plan.total_steps - 1, plan.start_live())
