"""OpenAI's own client for tests, and what its answers say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import openai
from pydantic import BaseModel

MESSAGES: list[Any] = [
    {"role": "system", "content": "the router"},
    {"role": "user", "content": "the gpu queue"},
]
FRESH = {"cache_prompt": False}
"""Unknown to OpenAI: without it, usage tells what llama.cpp remembered of the request before."""
_OF_THE_MOMENT = frozenset({"id", "created", "created_at", "completed_at", "item_id", "timings"})


def openai_client(base_url: str, **changes: Any) -> openai.AsyncOpenAI:
    """One that tries once unless told otherwise; close it."""
    return openai.AsyncOpenAI(base_url=base_url, api_key="any", **{"max_retries": 0, **changes})


def facts(answer: Any) -> Any:
    """All that an answer says, without what differs each time."""
    if isinstance(answer, BaseModel):
        answer = answer.model_dump()
    if isinstance(answer, dict):
        return {name: facts(value) for name, value in answer.items() if name not in _OF_THE_MOMENT}
    return [facts(one) for one in answer] if isinstance(answer, list | tuple) else answer


def said(chunks: Iterable[Any]) -> str:
    """The text of a chat stream."""
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
