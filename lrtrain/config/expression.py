"""Arithmetic as text in a config: `0.95 ** t`, `min(1, t / 100)`, `1 if t < 30 else 0.1`.

Only what is listed here can be written. All numbers are floats, so that nothing can grow without bound.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_LENGTH = 500

_NAMES: dict[str, Any] = {
    "pi": math.pi,
    "e": math.e,
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "cos": math.cos,
    "sin": math.sin,
    "tan": math.tan,
    "abs": abs,
    "min": min,
    "max": max,
    "floor": lambda x: float(math.floor(x)),
    "ceil": lambda x: float(math.ceil(x)),
}
_FUNCTIONS = [name for name, value in _NAMES.items() if callable(value)]
_ALLOWED = (
    ast.BinOp,
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.Div,
    ast.FloorDiv,
    ast.Mod,
    ast.Pow,
    ast.UnaryOp,
    ast.UAdd,
    ast.USub,
    ast.Constant,
    ast.Name,
    ast.Load,
    ast.Call,
    ast.IfExp,
    ast.Compare,
    ast.Lt,
    ast.LtE,
    ast.Gt,
    ast.GtE,
    ast.Eq,
    ast.NotEq,
    ast.BoolOp,
    ast.And,
    ast.Or,
    ast.Not,
)


@dataclass(frozen=True, slots=True)
class Expression:
    """A formula of one variable.

    >>> Expression.parse("0.5 ** (t // 10)", "t")(25)
    0.25
    """

    text: str
    variable: str
    function: Callable[[float], float]

    @classmethod
    def parse(cls, text: object, variable: str) -> Expression:
        """Read a formula of `variable`.

        Raises:
            ValueError: it is no formula, or uses what is not allowed; says what is.
        """
        if not isinstance(text, str | int | float) or isinstance(text, bool):
            raise ValueError(f"a formula of {variable} is text such as 0.95 ** {variable}")
        source = str(text).strip()
        if len(source) > MAX_LENGTH:
            raise ValueError(f"a formula has at most {MAX_LENGTH} characters; this has {len(source)}")
        if source.startswith("lambda"):
            raise ValueError(f"write only what stands after the lambda's colon, with {variable} as variable")
        try:
            body = ast.parse(source, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            what = f"{source!r} is not a formula of {variable} such as 0.95 ** {variable}"
            raise ValueError(what) from None
        for node in ast.walk(body):
            _check(node, variable)
        wrapper = ast.parse(f"lambda {variable}: 0", mode="eval")
        assert isinstance(wrapper.body, ast.Lambda)
        wrapper.body.body = _Floats().visit(body)
        code = compile(ast.fix_missing_locations(wrapper), "<formula>", "eval")
        return cls(source, variable, eval(code, {"__builtins__": {}, "__pow__": math.pow, **_NAMES}))

    def __call__(self, value: float) -> float:
        """The formula's value where the variable is `value`.

        Raises:
            ValueError: division by zero, overflow, root of a negative number and the like; says where.
        """
        try:
            return float(self.function(float(value)))
        except (ArithmeticError, ValueError, TypeError) as error:
            raise ValueError(f"{self.text!r} at {self.variable} = {value:g}: {error}") from None


def _check(node: ast.AST, variable: str) -> None:
    if isinstance(node, ast.Name) and node.id not in _NAMES and node.id != variable:
        raise ValueError(f"{node.id!r} is not known in a formula; known: {variable}, {', '.join(_NAMES)}")
    if isinstance(node, ast.Constant) and type(node.value) not in (int, float):
        raise ValueError(f"{node.value!r} cannot stand in a formula: numbers only")
    if isinstance(node, ast.Call):
        known = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
        if not known or node.keywords or not node.args:
            raise ValueError(f"a formula can call only {', '.join(_FUNCTIONS)}, such as sqrt({variable})")
    elif not isinstance(node, _ALLOWED):
        raise ValueError(
            f"a formula holds only arithmetic, comparisons and `a if {variable} < 1 else b`, not {type(node).__name__}"
        )


class _Floats(ast.NodeTransformer):
    """Every constant a float, every power `math.pow`: bounded in time and never complex."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        assert isinstance(node.value, int | float)
        try:
            return ast.Constant(float(node.value))
        except OverflowError:
            raise ValueError("a number in the formula is larger than a float can be") from None

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.Pow):
            return ast.Call(ast.Name("__pow__", ast.Load()), [node.left, node.right], [])
        return node
