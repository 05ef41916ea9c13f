"""A job as a caller asks for it: the fields of POST /v1/jobs and of a hand-written XADD, validated once."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    model_validator,
)

from shared.config import JobSettings
from shared.errors import InvalidRequest
from shared.states import Mode

AUTO = "auto"
ANY_AGENT = "*"
_CHARS_PER_TOKEN = 4
"""Rule of thumb for English text; an estimate of prompt tokens only ranks, it never refuses."""
_MOST_LEVELS = 64
"""Deepest nesting of a request: our parsers give up at 200 (pydantic) and at about 1,000 levels (json)."""
_FREE = ("messages", "metadata", "params")
"""Fields that hold any JSON: of all others their types say what is in them."""
_NESTED = ("messages", "metadata", "params", "stop", "logit_bias", "response_format", "tools")

Caller = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Sampling = Annotated[float, Field(ge=0, le=100)]


class JobRequest(BaseModel):
    """What to run and how urgently. Exactly one of ``prompt`` and ``messages``.

    ``params`` passes further sampling parameters to the backend untouched. ``deadline_s`` counts from
    acceptance. ``priority`` 9 is most urgent. Defaults that depend on the configuration are None here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Annotated[str, StringConstraints(min_length=1)] | None = None
    messages: Annotated[list[dict[str, JsonValue]], Field(min_length=1)] | None = None
    model: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None
    agent_type: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    priority: Annotated[int, Field(ge=0, le=9)] | None = None
    mode: Mode | None = None
    prefer_llama_cpp: bool = False
    min_context_tokens: Annotated[int, Field(ge=0, le=100_000_000)] = 0
    fallback: bool | None = None
    deadline_s: Annotated[float, Field(gt=0, le=30 * 86_400)] | None = None
    max_attempts: Annotated[int, Field(ge=1, le=100)] | None = None
    caller: Caller | None = None
    metadata: dict[str, JsonValue] | None = None
    temperature: Sampling | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    params: dict[str, JsonValue] | None = None

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of 'prompt' (text) and 'messages' (a list of {role, content})")
        for message in self.messages or ():
            if not isinstance(message.get("role"), str):
                raise ValueError("messages: every message needs a 'role' such as \"user\"")
        clash = sorted(RESERVED_PARAMS & set(self.params or ()))
        if clash:
            raise ValueError(f"params: {', '.join(clash)} is set by the orchestrator: leave it out")
        return self

    @property
    def named_model(self) -> str | None:
        """The model that the caller insists on, None for any."""
        return None if self.model in (None, AUTO) else self.model

    @property
    def target(self) -> str:
        """The queue it waits in: the model's name, or ``auto:<agent type>`` (``auto:*`` without one)."""
        return self.named_model or f"{AUTO}:{self.agent_type or ANY_AGENT}"

    @property
    def wants_fallback(self) -> bool:
        """Whether another model will do; the default where no model is named."""
        return self.fallback if self.fallback is not None else self.named_model is None

    @property
    def prompt_tokens_estimate(self) -> int:
        text = self.prompt if self.prompt is not None else json.dumps(self.messages, ensure_ascii=False)
        return max(1, len(text) // _CHARS_PER_TOKEN)

    def backend_body(self, defaults: JobSettings) -> dict[str, JsonValue]:
        """The request as an OpenAI-compatible backend takes it, without ``model`` and ``stream``."""
        body: dict[str, JsonValue] = dict(self.params or {})
        if self.prompt is not None:
            body["prompt"] = self.prompt
        else:
            body["messages"] = list(self.messages or [])
        body["max_tokens"] = self.max_tokens or defaults.max_tokens
        for name in ("temperature", "top_p", "stop", "seed"):
            value = getattr(self, name)
            if value is not None:
                body[name] = value
        return body


RESERVED_PARAMS = frozenset({"prompt", "messages", "model", "stream", "stream_options", "max_tokens", "n"})
"""What ``params`` must not hold: the orchestrator sets it, or has a field for it."""


def parse_job(data: Any) -> JobRequest:
    """Validate a decoded JSON body; raises ``InvalidRequest`` naming the first wrong field."""
    if not isinstance(data, dict):
        raise InvalidRequest("", 'the body must be a JSON object such as {"prompt": "hi"}')
    _check_text(list(data), "")
    for name, value in data.items():
        _check_text(value, str(name))
    try:
        return JobRequest.model_validate(data)
    except ValidationError as error:
        raise _invalid(error) from None


def parse_json(body: bytes) -> JobRequest | None:
    """What ``parse_job`` makes of a good JSON body, in one pass; None if anything is wrong with it.

    What is wrong is for ``parse_job`` to say: here pydantic words its errors in another way.
    """
    try:
        job = JobRequest.model_validate_json(body)
        for name in _FREE:
            value = getattr(job, name)
            if value is not None:
                _check_text(value, name)
    except (ValidationError, InvalidRequest):
        return None
    return job


def parse_entry(fields: Mapping[str, str]) -> JobRequest:
    """Validate the flat fields of a stream entry: nested ones are JSON, unknown ones are ignored."""
    data: dict[str, Any] = {name: fields[name] for name in JobRequest.model_fields if name in fields}
    for name in _NESTED:
        raw = data.get(name)
        if raw is not None and (name != "stop" or raw[:1] == "["):
            try:
                data[name] = json.loads(raw)
            except RecursionError:
                raise _too_deep(name) from None
            except ValueError:
                raise InvalidRequest(name, 'is not JSON such as ["a"] or {"a": 1}') from None
    return parse_job(data)


def _check_text(value: Any, field: str) -> None:
    """Refuse what Python's JSON takes and nobody behind us does: NaN, half surrogate pairs, deep nesting."""
    level = [value]
    for _ in range(_MOST_LEVELS):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += [*item, *item.values()]
            elif isinstance(item, list):
                below += item
            elif isinstance(item, float) and not math.isfinite(item):
                raise InvalidRequest(field, f"holds {item}, which is no number in JSON: use null or a number")
            elif isinstance(item, str) and not _is_utf8(item):
                raise InvalidRequest(
                    field, "holds half a surrogate pair (\\ud800 to \\udfff), which is no text: leave it out"
                )
        if not below:
            return
        level = below
    raise _too_deep(field)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _too_deep(field: str) -> InvalidRequest:
    return InvalidRequest(field, f"is nested more than {_MOST_LEVELS} levels deep: flatten it")


def _invalid(error: ValidationError) -> InvalidRequest:
    item = error.errors()[0]
    # Of a field of several types pydantic names the type that it tried: no part of the caller's path.
    steps = [str(step) for step in item["loc"]]
    path = ".".join(step for step in steps if step != "str" and not step.startswith(("list[", "dict[")))
    if item["type"] == "extra_forbidden":
        return InvalidRequest(path, f"is not a field of a job; known: {', '.join(JobRequest.model_fields)}")
    return InvalidRequest(path, str(item["msg"]).removeprefix("Value error, "))
