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
    ENGINE_DEATH = "engine_death"  # vLLM: all streams end in an error, soon afterwards the port is closed


_AFTER_TOKENS = {FaultKind.DIE_MID_STREAM: 3, FaultKind.SSE_ERROR: 3}


class Fault(BaseModel):
    """One fault of completions (``refuse``: of the whole port); ``/health`` and the like stay well.

    ``times`` counts the requests it strikes before it heals; without it, it stays. ``after_tokens`` is where
    in the answer it strikes (default 3; for ``hang`` 0, before the headers). ``engine_death`` strikes at once
    unless ``after_tokens`` says where in the next answer; after it the server must be loaded again.
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
        if self.kind is FaultKind.ENGINE_DEATH and self.times is not None:
            raise ValueError("times: an engine dies once: load the model again (residence: resident)")
        return self

    @property
    def of_requests(self) -> bool:
        """Whether it strikes requests one by one."""
        return self.kind is not FaultKind.REFUSE and not self.kills_now

    @property
    def kills_now(self) -> bool:
        return self.kind is FaultKind.ENGINE_DEATH and self.after_tokens is None

    def strikes_at(self, length: int) -> int | None:
        """Tokens of an answer of that ``length`` that still go out; None: it breaks no answer off."""
        if self.kind is FaultKind.SLOW:
            return None
        return min(
            length, _AFTER_TOKENS.get(self.kind, 0) if self.after_tokens is None else self.after_tokens
        )
