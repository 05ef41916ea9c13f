"""Why a client gets an error instead of an answer: status, words, and whether to come again."""

from __future__ import annotations

from services.api.full import again_s_of
from shared.backends.errors import BackendError, Rejected
from shared.decision.causes import Cause
from shared.errors import OrchestratorError, StoreUnavailable
from shared.states import JobState

AGAIN_S = 2
"""When to come again after what usually passes in a moment: an absent Redis, an api that stops."""
_AGAIN_UNKNOWN_S = 30
_TOO_SLOW = 408
_NOT_FOUND = frozenset({Cause.UNKNOWN_MODEL, Cause.UNKNOWN_AGENT_TYPE, Cause.NOT_SERVING})
MODEL_NOT_FOUND = "model_not_found"


class Refusal(OrchestratorError):
    """An error answer. ``param`` names the wrong field or header, ``code`` is stable, for programs.

    ``again_s`` becomes Retry-After; ``final`` asks clients that repeat by themselves not to.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        again_s: int | None = None,
        final: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.again_s = again_s
        self.final = final

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that say when to come again."""
        found: list[tuple[bytes, bytes]] = []
        if self.again_s is not None:
            found.append((b"retry-after", str(self.again_s).encode()))
        if self.final:
            # OpenAI's and Anthropic's clients repeat every 5xx twice unless told otherwise.
            found.append((b"x-should-retry", b"false"))
        if self.status == _TOO_SLOW:
            found.append((b"connection", b"close"))  # the rest of the body would be read from it for nothing
        return found


def invalid(param: str, message: str) -> Refusal:
    """A wrong field or header."""
    return Refusal(400, "invalid_value", f"{param}: {message}", param=param)


def store_away(error: StoreUnavailable) -> Refusal:
    return Refusal(
        503, "store_unavailable", f"Redis cannot be used right now ({error}): try again", again_s=AGAIN_S
    )


def queue_full(bound: int, ended_per_s: float) -> Refusal:
    """``ended_per_s``: how many jobs end a second, which tells when a place is free again."""
    again_s = again_s_of(ended_per_s)
    return Refusal(
        429,
        "queue_full",
        f"queue.bound = {bound} jobs wait already: try again in {again_s} s",
        again_s=again_s,
    )


def key_limit(message: str, again_s: int) -> Refusal:
    """A limit of the API key is reached; the message names it."""
    return Refusal(429, "rate_limit_exceeded", message, again_s=again_s)


def too_much_held(held_bytes: int) -> Refusal:
    held = f"{held_bytes / 2**20:.0f} MB of requests wait in this api already"
    return Refusal(503, "api_full", f"{held}: try again", again_s=_AGAIN_UNKNOWN_S)


def too_much_alone(bound_bytes: int) -> Refusal:
    return Refusal(
        413,
        "body_too_large",
        f"the body's values would take more than {bound_bytes / 2**20:.0f} MB of memory: shorten it",
    )


def too_slow(within_s: float) -> Refusal:
    return Refusal(
        _TOO_SLOW, "request_timeout", f"the body did not come within {within_s:g} s: send it faster"
    )


def stopping() -> Refusal:
    return Refusal(503, "api_stopped", "this api stops: try again", again_s=AGAIN_S)


def deadline_passed(detail: str) -> Refusal:
    return Refusal(
        504,
        "deadline_exceeded",
        f"{detail}: try again, or allow it more time with the header X-Deadline-S",
        again_s=AGAIN_S,
    )


def cancelled(detail: str) -> Refusal:
    return Refusal(503, "cancelled", detail or "the job was cancelled", final=True)


def of_end(state: JobState, error_type: str, detail: str) -> Refusal:
    """What a job's end means for its client, where it was not this api that ended it."""
    if state is JobState.EXPIRED:
        return deadline_passed(detail or "its deadline passed")
    if state is JobState.CANCELLED:
        return cancelled(detail)
    if state is JobState.FAILED and error_type in _NOT_FOUND:
        return Refusal(404, MODEL_NOT_FOUND, detail, param="model")
    if state is JobState.FAILED and error_type == Cause.CONTEXT_TOO_SMALL:
        return Refusal(400, "context_length_exceeded", detail)
    return Refusal(503, error_type or state.value, detail or f"the job is {state.value}", again_s=AGAIN_S)


def of_backend(error: BackendError) -> Refusal:
    """An error of a backend that the client has to be told of in our words."""
    status = error.status if isinstance(error, Rejected) and (error.status or 0) >= 400 else None
    return Refusal(status or 502, error.type, error.detail or str(error), final=status is not None)
