"""Units of numbers in settings: written beside the type, read by whatever documents them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

UNIT = "x-unit"
"""Where a JSON schema of ours says the unit of a number."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What a number counts; changes nothing in what is accepted."""

    name: str

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {**handler(schema), UNIT: self.name}


SECONDS = Unit("s")
TOKENS = Unit("tokens")
Seconds = Annotated[float, Field(gt=0, le=86400), SECONDS]
Bytes = Annotated[int, Field(ge=1024), Unit("bytes")]
Gigabytes = Annotated[float, Field(ge=0), Unit("GB")]
"""GB of 2^30 bytes."""
Port = Annotated[int, Field(ge=1, le=65535), Unit("port")]
