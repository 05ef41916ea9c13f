"""What the end of an answer that was passed on tells of it."""

from __future__ import annotations

import pytest

from services.api.gateway.outcomes import measured
from shared.outcomes import learned

TIMINGS = '"timings":{"cache_n":3,"prompt_n":20,"prompt_ms":4.0,"predicted_n":12,"predicted_ms":6.0}'
USAGE = '"usage":{"completion_tokens":11,"prompt_tokens":23,"total_tokens":34}'


@pytest.mark.parametrize(
    ("end", "tokens"),
    [
        (f'{{"choices":[],{USAGE},{TIMINGS}}}', 11),
        (f'{{"choices":[],{TIMINGS}}}', 12),
        ('{"choices":[],"usage":null}', None),
    ],
    ids=["usage", "llama.cpp's own count", "nothing"],
)
def test_the_tokens_of_an_answer_are_counted_also_without_usage(end: str, tokens: int | None) -> None:
    """Most clients that stream do not ask for it."""
    completion = measured(f"data: {end}\n\ndata: [DONE]\n\n".encode(), 10.0, 120.0)

    assert completion.output_tokens == tokens
    assert learned(completion).get("avg_output_tokens") == tokens
