"""What a simulated backend can be told to do wrong."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class FaultKind(StrEnum):
    REFUSE = "refuse"  # the port is closed, all connections are cut
    STATUS = "status"  # an HTTP error instead of an answer
    HANG = "hang"  # the request holds its slot and nothing more comes, until the fault is taken away
    DIE_MID_STREAM = "die_mid_stream"  # the connection is cut
    SSE_ERROR = "sse_error"  # an error object inside a stream that began with status 200
    SLOW = "slow"  # a tenth of the speed


_AFTER_TOKENS = {FaultKind.DIE_MID_STREAM: 3, FaultKind.SSE_ERROR: 3}


class Fault(BaseModel):
    """One fault of completions (``refuse``: of the whole port); ``/health`` and the like stay well.

    ``times`` counts the requests it strikes before it heals; without it, it stays. ``after_tokens`` is where
    in the answer it strikes (default 3; for ``hang`` 0, before the headers).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: FaultKind
    status: Annotated[int, Field(ge=400, le=599)] = 500
    retry_after_s: Annotated[float, Field(ge=0)] | None = None
    times: Annotated[int, Field(ge=1)] | None = None
    after_tokens: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _countable(self) -> Self:
        if self.kind is FaultKind.REFUSE and self.times is not None:
            raise ValueError("times: refused connections can't be counted: heal it with kind null")
        return self

    @property
    def strikes_after(self) -> int:
        """Tokens of the answer that still go out."""
        return _AFTER_TOKENS.get(self.kind, 0) if self.after_tokens is None else self.after_tokens
