"""What each way for an attempt to end means for its job and for the model: the outcome table."""

from __future__ import annotations

import random
from collections.abc import Mapping

from shared.backends.completion import Completion
from shared.backends.errors import (
    BackendError,
    Broken,
    Interrupted,
    NotSent,
    Rejected,
    Saturated,
    UnknownModel,
)
from shared.config import RouterSettings
from shared.json_text import as_it_is
from shared.store.records import FailKind, Failure, ModelFailure

_SATURATED_LEAST_S = 0.25
_LONGEST_WAIT_S = 86_400.0
_NAME_UNKNOWN_S = 2.0
"""Longer than a monitor takes to probe a server that it has just met, which tells its name."""

_TELLING_PROMPT = 16
"""Prompt tokens below which the time of a prefill is mostly overhead."""

CANCELLED = Failure(FailKind.CANCELLED, "cancelled", "cancelled by request while it ran")
EXPIRED = Failure(FailKind.EXPIRED, "deadline", "its deadline passed while it ran")
RELEASED = Failure(FailKind.RELEASED, "router_stopped", "its router was stopped and handed it over")


def failure_of(error: BackendError, tries: int, settings: RouterSettings) -> Failure:
    """The outcome table (architecture, section 3): who is charged, who is blamed, and when it may go again.

    Refused = was not run: free of charge, at once, elsewhere. Saturated = was not run: free of charge, the
    model rests for as long as it asked. A name that the server does not know = was not run, and is not the
    caller's fault: free of charge, until its monitor has found the name out; but ``failed`` where the
    registration says the name (the store knows). Other 4xx = will never work.
    5xx, reset and silence = charged, with full jitter (a random wait up to base * 2^tries), since it may
    still be running.
    """
    detail = error.detail or str(error)
    match error:
        case NotSent():
            return Failure(FailKind.RETRY, error.type, detail, model_failure=ModelFailure.REFUSED)
        case Saturated():
            asked = error.retry_after_s
            rest_s = max(_SATURATED_LEAST_S, backoff_s(tries, settings) if asked is None else asked)
            return Failure(
                FailKind.RETRY, error.type, detail, saturated_ms=round(min(rest_s, _LONGEST_WAIT_S) * 1000)
            )
        case UnknownModel():
            rest_ms = round(_NAME_UNKNOWN_S * 1000)
            return Failure(FailKind.RETRY, error.type, detail, name_unknown_ms=rest_ms)
        case Rejected():
            return Failure(FailKind.FAILED, error.type, detail)
        case Broken() | Interrupted():
            return _charged(error.type, detail, tries, settings)
        case _:
            return _charged("backend_error", detail, tries, settings)


def crash(error: Exception, tries: int, settings: RouterSettings) -> Failure:
    """An error of our own while the call ran: charged, so that a job that provokes it ends some day."""
    return _charged("router_error", f"{type(error).__name__}: {error}"[:500], tries, settings)


def backoff_s(tries: int, settings: RouterSettings) -> float:
    """Full jitter: uniform between 0 and ``base * 2^tries``, capped."""
    return random.uniform(0.0, min(settings.retry_cap_s, settings.retry_base_s * 2 ** min(tries, 30)))


def result_of(completion: Completion) -> str:
    """The stored result, as GET answers it."""
    return as_it_is(
        {
            "text": completion.text,
            "finish_reason": completion.finish_reason,
            "usage": completion.usage,
            "response": completion.response,
            "truncated": completion.truncated,
        }
    )


def job_fields(completion: Completion) -> Mapping[str, str]:
    """What the job's hash learns from its success."""
    first = completion.first_token_ms
    return {} if first is None else {"first_token_ms": f"{first:.1f}"}


def learned(completion: Completion) -> Mapping[str, float]:
    """Averages of the model that this completion moves; what can't be told is left out.

    The backend's own prefill time wins over ours, which holds its queue too, and stands on the tokens that it
    processed: with a long cached prefix those are few. A handful of tokens tells nothing of a speed.
    """
    values = {"avg_latency_ms": completion.total_ms}
    first, prompt, output = completion.first_token_ms, completion.prompt_tokens, completion.output_tokens
    prefill_ms = first
    if completion.prompt_ms is not None and completion.prompt_processed is not None:
        prompt, prefill_ms = completion.prompt_processed, completion.prompt_ms
    if prompt is not None and prompt >= _TELLING_PROMPT and prefill_ms is not None:
        values["seconds_per_prompt_token"] = prefill_ms / 1000 / prompt
    if output:
        values["avg_output_tokens"] = float(output)
    if output and output > 1 and first is not None:
        values["seconds_per_output_token"] = max(0.0, completion.total_ms - first) / 1000 / (output - 1)
    return values


def _charged(error_type: str, detail: str, tries: int, settings: RouterSettings) -> Failure:
    return Failure(
        FailKind.RETRY,
        error_type,
        detail,
        delay_ms=round(backoff_s(tries, settings) * 1000),
        charge=True,
        model_failure=ModelFailure.FAILED,
    )
