"""Reading a Prometheus exposition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.backends.exposition import parse, total, values
from tests.unit.strategies import PROPERTY

TEXT = """\
# HELP vllm:num_requests_running Number of requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a}b"} 4.0
vllm:num_requests_running{engine="1",model_name="a}b"} 2
vllm:kv{engine="0"} NaN
llamacpp:requests_deferred 3
with_a_time 5e2 1712345678
broken_line
no_number x
"""


def test_samples_keep_name_labels_and_value() -> None:
    assert parse(TEXT) == [
        ("vllm:num_requests_running", 'engine="0",model_name="a}b"', 4.0),
        ("vllm:num_requests_running", 'engine="1",model_name="a}b"', 2.0),
        ("llamacpp:requests_deferred", "", 3.0),
        ("with_a_time", "", 500.0),
    ]


def test_a_count_is_summed_over_its_series_and_unknown_where_it_is_missing() -> None:
    samples = parse(TEXT)

    assert total(samples, "vllm:num_requests_running") == 6
    assert total(samples, "vllm:kv") is None
    assert total(samples, "vllm:num_requests_waiting") is None


def test_the_first_name_that_occurs_wins() -> None:
    samples = [("old", "", 1.0), ("new", "", 2.0)]

    assert values(samples, "new", "old") == [2.0]
    assert values(samples[:1], "new", "old") == [1.0]


def test_a_label_picks_series() -> None:
    assert values(parse(TEXT), "vllm:num_requests_running", label='engine="1"') == [2.0]


@PROPERTY
@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    assert isinstance(parse(text), list)
