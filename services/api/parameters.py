"""Query parameters: each known and given once, and numbers whose error says the whole range."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from services.api.problems import INVALID, Problem

_SHOWN = 60

ModelName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
AgentName = Annotated[str, StringConstraints(min_length=1, max_length=64)]


async def _checked(request: Request) -> None:
    """Raises ``Problem`` (422) for a parameter that the call does not have, or that comes more than once.

    Of a repeated one only the last would count: what the others were meant to do would be lost in silence.
    """
    given = Counter(name for name, _ in request.query_params.multi_items())
    known = _declared(request) if given else []
    for name, times in given.items():
        shown = name[:_SHOWN]
        if name not in known:
            exist = f"known: {', '.join(known)}" if known else "it has none"
            detail = f"{shown}: is no parameter of this call; {exist}"
        elif times > 1:
            detail = f"{shown}: is given {times} times: give it once"
        else:
            continue
        raise Problem(INVALID, detail, field=shown, known=known)


KNOWN_ONCE = Depends(_checked)
"""For every router: a call with an unknown or a repeated query parameter is refused, whatever it is."""


def _declared(request: Request) -> list[str]:
    """The query parameters of the call that a request is for, as the OpenAPI document has them."""
    app: FastAPI = request.app
    paths = app.openapi()["paths"]
    call = paths.get(request.scope["route"].path_format, {}).get(request.method.lower(), {})
    return sorted(one["name"] for one in call.get("parameters", []) if one["in"] == "query")


class Parameters(BaseModel):
    """The query of one call; a name that it does not know is an error, since it was meant to do something."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class Within:
    """Bounds of a number, both allowed."""

    low: float
    high: float
    unit: str = ""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {**handler(schema), "minimum": self.low, "maximum": self.high}

    def _check(self, value: Any, handler: ValidatorFunctionWrapHandler) -> float:
        try:
            number: float = handler(value)
        except ValidationError:
            number = float("nan")
        if not self.low <= number <= self.high:
            raise PydanticCustomError(
                "outside",
                "{given} is none that can be used: give {low} to {high}{unit}",
                {
                    "given": repr(str(value)[:_SHOWN]),
                    "low": f"{self.low:.10g}",
                    "high": f"{self.high:.10g}",
                    "unit": f" {self.unit}" if self.unit else "",
                },
            )
        return number
