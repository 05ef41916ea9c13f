"""What is hidden in a text, wherever and however it stands there, and that looking for it is cheap."""

from __future__ import annotations

import json
import time

import pytest

from shared.backends.errors import DETAIL_LIMIT, from_status
from shared.backends.request import headers
from shared.masking import SHORTEST_SECRET, keep_secret, masked, masked_for_log, without_our_secrets

_LONG = 200_000


@pytest.mark.parametrize(
    ("said", "secret"),
    [
        ('got headers {"x-api-key": "leakedsecret1", "a": 1}', "leakedsecret1"),
        ('{"api_key": "s3cr3t"}', "s3cr3t"),
        ("{'apiKey': 'it has \"quotes\" in it'}", "quotes"),
        ("Authorization: Token s3cr3t", "s3cr3t"),
        ('"authorization":["Basic dXNlcjpw", "Basic cHc6dXNlcg"]', "cHc6dXNlcg"),
        ('"authorization":["Basic dXNlcjpw"]', "dXNlcjpw"),
        ("ApI-KEY=abc", "abc"),
        ("GET /x?TOKEN=abc&b=1", "abc"),
        ("HF_TOKEN=hf_short", "hf_short"),
        (r"said {\"password\": \"hunter2 and more\"}", "hunter2"),
        ('{"password": "hunter2\\"sesame", "a": 1}', "sesame"),
        ("authorization=b'Basic dXNlcjpw'", "dXNlcjpw"),
        ("BEARER abcdefgh12345678", "abcdefgh12345678"),
    ],
)
def test_a_secret_is_known_by_its_name_however_that_is_written(said: str, secret: str) -> None:
    for text in (said, json.dumps({"detail": said}), json.dumps(json.dumps({"detail": said}))):
        hidden = masked_for_log(text)
        assert secret not in hidden
        assert "***" in hidden
        assert masked_for_log(hidden) == hidden


@pytest.mark.parametrize(
    "said",
    [
        "first_token_ms=81.2 tokens=16 max_tokens: 4096",
        "its first token is expected in 81 ms, the key of it: none",
        "unexpected token: }",
        "models.0.api_key_env: must be the name of a variable",
    ],
)
def test_what_only_looks_like_a_secrets_name_hides_nothing(said: str) -> None:
    assert masked_for_log(said) == said


@pytest.mark.parametrize(
    "text",
    [
        "@" + "a" * _LONG,
        "@" + "a:" * (_LONG // 2),
        "@" + "a " * (_LONG // 2),
        "@" + "://" * (_LONG // 3),
        "?key" * (_LONG // 4),
        "?key@" + "a" * _LONG,
        "sk-authorization" * (_LONG // 16),
        "key" + "-" * _LONG,
        "authorization: bearer " * (_LONG // 22),
        "token" + " " * _LONG + "token=",
        'token:"' * (_LONG // 7),
        'token:\\"' * (_LONG // 8),
        "token=[" * (_LONG // 7),
        "bearer" + " " * _LONG,
    ],
    ids=lambda text: text[:12],
)
def test_the_longest_text_is_looked_through_in_no_time(text: str) -> None:
    """Linear takes hundredths of a second, quadratic minutes (24 KB: 3 s): nothing in between is expected."""
    began = time.process_time()
    masked_for_log(text)
    masked(text)
    assert time.process_time() - began < 5


def test_a_key_of_ours_is_hidden_wherever_it_stands() -> None:
    headers('plain"backend key777')

    for text in ('raw plain"backend key777.', json.dumps('raw plain"backend key777')):
        assert "key777" not in masked_for_log(text)
        assert "key777" not in without_our_secrets(text.encode()).decode()


def test_a_password_in_a_url_is_hidden_as_it_is_written_and_as_it_is_meant() -> None:
    keep_secret("sesame%2Fopen")

    assert masked_for_log("no sesame/open, no sesame%2Fopen") == "no ***, no ***"


def test_of_two_secrets_the_longer_one_is_hidden_as_a_whole() -> None:
    keep_secret("barley-porridge")
    keep_secret("barley-porridge-for-two")

    assert masked_for_log("eat barley-porridge-for-two") == "eat ***"


def test_a_word_too_short_for_a_secret_hides_nothing() -> None:
    word = "qzxjk"
    assert len(word) < SHORTEST_SECRET
    keep_secret(word)
    keep_secret("")

    assert masked_for_log(f"a {word}") == f"a {word}"


def test_what_a_backend_says_of_a_failure_has_no_secret_even_where_it_is_cut() -> None:
    keep_secret("a-key-of-ours-999")
    error = from_status(400, "x" * (DETAIL_LIMIT - 8) + ' a-key-of-ours-999 {"api_key": "theirs"}')
    short = from_status(400, 'bad {"api_key": "theirs"} a-key-of-ours-999')

    assert "a-key" not in str(error)
    assert short.detail == 'bad {"api_key": "***"} ***'
