"""The arguments of one in-process decision, checked as the api checks a job's."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from shared.decision.snapshot import Request
from shared.errors import InvalidRequest
from shared.states import Mode

_Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    model: _Name | None
    agent_type: _Name | None
    prompt_tokens: Annotated[int, Field(ge=0)]
    max_tokens: Annotated[int, Field(ge=1)]
    min_context_tokens: Annotated[int, Field(ge=0)]
    prefer_llama_cpp: bool
    priority: Annotated[int, Field(ge=0, le=9)]
    mode: Mode | None
    fallback: bool
    deadline_in_ms: Annotated[float, Field(gt=0)] | None


def checked_request(**arguments: Any) -> Request:
    """The request that these arguments mean; raises ``InvalidRequest`` naming the first wrong one."""
    mode = arguments.get("mode")
    if mode in tuple(Mode):
        arguments["mode"] = Mode(mode)
    try:
        return Request(**_Arguments(**arguments).model_dump())
    except ValidationError as error:
        item = error.errors()[0]
        raise InvalidRequest(str(item["loc"][0]), f"{item['msg']}, not {item['input']!r}") from None
