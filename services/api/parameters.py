"""Query parameters: numbers whose error says the whole range, and the page that a query is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

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

_SHOWN = 60

ModelName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
AgentName = Annotated[str, StringConstraints(min_length=1, max_length=64)]


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
