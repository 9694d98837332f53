"""Lengths of training with their unit: `5ep`, `3.5ep`, `300step`, `10%`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from lrtrain.errors import quoted

_DECIMALS = 12
PATTERN = r"^([0-9]{1,12}(?:\.[0-9]{1,12})?)(ep|step|%)$"
_LOOSE = re.compile(
    r"^([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*(e|eps|epochs?|it|iters?|iterations?|ba|s|st|steps|percent)$", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of training: `value` epochs (`ep`), optimizer steps (`step`) or percent of the run (`%`).

    >>> Duration.parse("3.5ep").to_steps(steps_per_epoch=10, total_steps=100)
    35
    """

    value: Fraction
    unit: str

    @classmethod
    def parse(cls, text: object) -> Duration:
        """Read `5ep`, `3.5ep`, `300step` or `10%`.

        Raises:
            ValueError: says what is allowed, and the fix where it can be guessed.
        """
        if isinstance(text, bool) or not isinstance(text, int | float | str) or text in (math.inf, -math.inf):
            raise ValueError("a duration is written 5ep, 300step or 10%")
        if isinstance(text, int | float):
            raise ValueError(f"{quoted(text)} has no unit: write {text:g}ep, {text:g}step or {text:g}%")
        match = re.fullmatch(PATTERN, text)
        if match is None:
            loose = _LOOSE.match(text)
            unit = "" if loose is None else {"e": "ep", "p": "%"}.get(loose[2][0].lower(), "step")
            fix = f": write {loose[1]}{unit}" if loose else ""
            raise ValueError(f"{quoted(text)} is not a duration such as 5ep, 3.5ep, 300step or 10%{fix}")
        if match[2] == "step" and "." in match[1]:
            raise ValueError(f"{text!r}: steps are whole numbers")
        return cls(Fraction(match[1]), match[2])

    def to_steps(self, steps_per_epoch: int, total_steps: int) -> int:
        """The length in optimizer steps, rounded half up.

        Args:
            steps_per_epoch: optimizer steps in one pass over the training data.
            total_steps: optimizer steps in the whole run, which `%` is a part of.
        """
        per_unit = {"ep": Fraction(steps_per_epoch), "step": Fraction(1), "%": Fraction(total_steps, 100)}
        return int(self.value * per_unit[self.unit] + Fraction(1, 2))

    def __str__(self) -> str:
        whole, part = divmod(int(self.value * 10**_DECIMALS), 10**_DECIMALS)  # exact: no float has so many digits
        return f"{whole}.{part:0{_DECIMALS}}".rstrip("0").rstrip(".") + self.unit

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def validate(value: object) -> Duration:
            if isinstance(value, Duration):
                return value
            try:
                return cls.parse(value)
            except ValueError as error:
                raise PydanticCustomError("duration", "{why}", {"why": str(error)}) from None

        return core_schema.no_info_plain_validator_function(
            validate, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": PATTERN, "examples": ["5ep", "300step", "10%"]}
