"""Arithmetic as text in a config: `0.95 ** t`, `min(1, t / 100)`, `1 if t < 30 else 0.1`.

Only what is listed here can be written, and it is never handed to Python to run. All numbers are floats, so that
nothing can grow without bound.
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lrtrain.errors import quoted

MAX_LENGTH = 500  # characters
MAX_DEPTH = 60

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
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: math.pow,  # bounded in time and never complex
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}

Function = Callable[[float], Any]


@dataclass(frozen=True, slots=True)
class Expression:
    """A formula of one variable.

    >>> Expression.parse("0.5 ** (t // 10)", "t")(25)
    0.25
    """

    text: str
    variable: str
    function: Function

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
            with warnings.catch_warnings(action="error"):  # of `1if`, which Python may read otherwise than a person
                body = ast.parse(source, mode="eval").body
        except (SyntaxError, SyntaxWarning, ValueError, RecursionError, MemoryError):
            what = f"{quoted(source)} is not a formula of {variable} such as 0.95 ** {variable}"
            raise ValueError(what) from None
        return cls(source, variable, _function(body, variable, 0))

    def __call__(self, value: float) -> float:
        """The formula's value where the variable is `value`.

        Raises:
            ValueError: division by zero, overflow, root of a negative number and the like; says where.
        """
        try:
            return float(self.function(float(value)))
        except (ArithmeticError, ValueError, TypeError) as error:
            raise ValueError(f"{quoted(self.text)} at {self.variable} = {value:g}: {error}") from None


def _function(node: ast.AST, variable: str, depth: int) -> Function:
    """A formula's part as a function of the variable, made of nothing but what is listed above.

    Raises:
        ValueError: it is something else.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"a formula is nested at most {MAX_DEPTH} deep")

    def part(inner: ast.AST) -> Function:
        return _function(inner, variable, depth + 1)

    if isinstance(node, ast.Constant):
        return _constant(node.value)
    if isinstance(node, ast.Name):
        return _named(node.id, variable)
    if isinstance(node, ast.Call):
        return _call(node, variable, [part(argument) for argument in node.args])
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        operate, left, right = _OPERATORS[type(node.op)], part(node.left), part(node.right)
        return lambda t: operate(left(t), right(t))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        change, operand = _OPERATORS[type(node.op)], part(node.operand)
        return lambda t: change(operand(t))
    if isinstance(node, ast.IfExp):
        test, body, orelse = part(node.test), part(node.body), part(node.orelse)
        return lambda t: body(t) if test(t) else orelse(t)
    if isinstance(node, ast.BoolOp):
        return _joined([part(value) for value in node.values], go_on=isinstance(node.op, ast.And))
    if isinstance(node, ast.Compare) and all(type(op) in _OPERATORS for op in node.ops):
        return _compared(node, [part(side) for side in (node.left, *node.comparators)])
    what = f"a formula holds only arithmetic, comparisons and `a if {variable} < 1 else b`"
    raise ValueError(f"{what}, not {type(getattr(node, 'op', node)).__name__}")


def _constant(value: object) -> Function:
    if type(value) not in (int, float):
        raise ValueError(f"{quoted(value)} cannot stand in a formula: numbers only")
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:
        raise ValueError("a number in the formula is larger than a float can be") from None
    return lambda t: number


def _named(name: str, variable: str) -> Function:
    if name == variable:
        return lambda t: t
    if name not in _NAMES:
        raise ValueError(f"{quoted(name)} is not known in a formula; known: {variable}, {', '.join(_NAMES)}")
    if name in _FUNCTIONS:
        raise ValueError(f"{name} is a function, and stands alone in the formula; call it, such as {name}({variable})")
    value = _NAMES[name]
    return lambda t: value


def _call(node: ast.Call, variable: str, arguments: list[Function]) -> Function:
    if not (isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS) or node.keywords or not arguments:
        raise ValueError(f"a formula can call only {', '.join(_FUNCTIONS)}, such as sqrt({variable})")
    function = _NAMES[node.func.id]
    return lambda t: function(*[argument(t) for argument in arguments])


def _joined(parts: list[Function], *, go_on: bool) -> Function:
    """`and`, where `go_on` is true, or `or`: the first value that decides, as in Python."""

    def decide(t: float) -> Any:
        found: Any = None
        for part in parts:
            found = part(t)
            if bool(found) is not go_on:
                return found
        return found

    return decide


def _compared(node: ast.Compare, sides: list[Function]) -> Function:
    operators = [_OPERATORS[type(op)] for op in node.ops]

    def compare(t: float) -> bool:
        values = [side(t) for side in sides]
        return all(operators[i](values[i], values[i + 1]) for i in range(len(operators)))

    return compare
