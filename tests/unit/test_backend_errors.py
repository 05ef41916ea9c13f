"""The tree of backend errors and the words in them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.backends.errors import (
    DETAIL_LIMIT,
    BackendError,
    Broken,
    Rejected,
    Saturated,
    UnknownModel,
    error_detail,
    from_error_object,
    from_status,
    retry_after_s,
)
from shared.backends.request import root_url
from tests.unit.strategies import PROPERTY


@PROPERTY
@given(st.integers(300, 599))
def test_every_status_that_is_no_success_has_one_meaning(status: int) -> None:
    error = from_status(status, "words")

    expected = Saturated if status in (429, 503) else Rejected if status < 500 or status == 501 else Broken
    assert (type(error), error.status, error.detail) == (expected, status, "words")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, "The model `x` does not exist. Valid aliases: org/served."),
        (400, "model 'zzz' not found"),
        (404, 'model "zzz" not found, try pulling it first'),
    ],
)
def test_a_server_that_does_not_know_the_name_is_told_from_one_that_refuses(status: int, words: str) -> None:
    error = from_status(status, words)
    assert (type(error), error.type, error.status) == (UnknownModel, "backend_unknown_model", status)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, "Not Found"),
        (404, "File Not Found"),
        (400, "the model 'x' takes no images"),
        (422, "model 'x' not found"),
        (404, "no such path for the model: not found"),
    ],
)
def test_another_refusal_stays_one(status: int, words: str) -> None:
    assert type(from_status(status, words)) is Rejected


@PROPERTY
@given(st.text())
def test_details_are_one_storable_line_of_bounded_length(words: str) -> None:
    detail = BackendError("backend_error", words + "\ud800" * 3 + " x" * 400).detail

    assert len(detail) == DETAIL_LIMIT
    assert detail.encode().decode() == detail
    assert len(detail.splitlines()) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("0", 0.0), ("1.5", 1.5), ("-3", 0.0), ("nan", None), ("inf", None), ("", None)],
)  # fmt: skip
def test_retry_after_in_seconds(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value) == seconds


@PROPERTY
@given(st.integers(-100_000, 100_000))
def test_a_date_counts_from_the_servers_own_clock(ahead_s: int) -> None:
    then = datetime(2020, 2, 3, tzinfo=UTC)

    until = format_datetime(then + timedelta(seconds=ahead_s), usegmt=True)
    assert retry_after_s(until, format_datetime(then, usegmt=True)) == max(0.0, ahead_s)


def test_a_date_without_the_servers_clock_counts_from_ours() -> None:
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)

    assert retry_after_s(until) == pytest.approx(60, abs=5)
    assert retry_after_s(until, "no date") == pytest.approx(60, abs=5)


@PROPERTY
@given(st.text())
def test_any_retry_after_is_understood_or_left_alone(value: str) -> None:
    seconds = retry_after_s(value, value)

    assert seconds is None or seconds >= 0


@PROPERTY
@given(st.binary(max_size=60))
def test_any_error_body_has_words(body: bytes) -> None:
    assert isinstance(error_detail(body), str)


@pytest.mark.parametrize(
    ("error", "kind", "detail"),
    [
        ({"code": True, "message": "m"}, Broken, "m"),
        ({"code": 404, "message": "m"}, Rejected, "m"),
        ({"type": "x"}, Broken, '{"type": "x"}'),
        (7, Broken, "an error without words"),
    ],
)
def test_error_objects_of_any_shape_are_understood(
    error: object, kind: type[BackendError], detail: str
) -> None:
    found = from_error_object(error)

    assert (type(found), found.detail) == (kind, detail)


@pytest.mark.parametrize(
    ("given_url", "root"),
    [
        ("http://h:1", "http://h:1"),
        ("http://h:1/", "http://h:1"),
        ("http://h:1/v1", "http://h:1"),
        ("http://h:1/v1/", "http://h:1"),
        ("http://h:1/llm/v1", "http://h:1/llm"),
        ("http://h:1/llm/", "http://h:1/llm"),
        ("http://v1", "http://v1"),
    ],
)
def test_a_base_url_may_carry_a_path_and_v1(given_url: str, root: str) -> None:
    assert root_url(given_url) == root
