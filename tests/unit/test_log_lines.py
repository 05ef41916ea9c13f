"""A line of the log: one line whatever is in it, readable by people and by programs, and without secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

from shared import log
from shared.log_lines import entry_of, json_line, said_in, terminal_line, text_line, without_secrets
from shared.log_sink import BoundedFile
from shared.masking import masked_for_log

if TYPE_CHECKING:
    from loguru import Message

_FORGED = 'x\n2026-01-01T00:00:00.000+00:00 ERROR   api event=decision code="a"\r\x1b[2Jevil\u2028\u202e'
_LOGFMT = re.compile(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^\s"]+)(?: |$)')


@dataclass
class Written:
    """What was logged, in each form."""

    text: list[str] = field(default_factory=list)
    terminal: list[str] = field(default_factory=list)
    json: list[str] = field(default_factory=list)

    def write(self, message: Message) -> None:
        message.record["extra"]["service"] = "router"
        entry = without_secrets(entry_of(message.record))
        self.text.append(text_line(entry))
        self.terminal.append(terminal_line(entry))
        self.json.append(json_line(entry))

    @property
    def fields(self) -> dict[str, Any]:
        """The last line as a program reads it."""
        found: dict[str, Any] = json.loads(self.json[-1])
        return found


@pytest.fixture
def written() -> Iterator[Written]:
    found = Written()
    sink = logger.add(found, format=lambda _: "", level="DEBUG")
    yield found
    logger.remove(sink)


def logfmt(line: str) -> dict[str, str]:
    """The fields of a canonical line as text, which must be nothing but fields."""
    at, level, service, rest = line.split(maxsplit=3)
    assert datetime.fromisoformat(at).tzinfo is not None
    assert (level, service) == ("INFO", "router")
    found = {name: json.loads(raw) if raw[0] == '"' else raw for name, raw in _LOGFMT.findall(rest)}
    assert _LOGFMT.sub("", rest) == ""
    return found


def test_a_canonical_line_has_the_same_fields_as_text_and_as_json(written: Written) -> None:
    log.event("decision", action="dispatch", job="7", model=None, gpu="host/0", waiting=3, score=0.12345)

    shared = {"event": "decision", "action": "dispatch", "job": "7", "gpu": "host/0"}
    assert logfmt(written.text[-1]) == {**shared, "waiting": "3", "score": "0.123"}
    line = written.fields
    assert datetime.fromisoformat(line.pop("ts")).tzinfo is not None
    assert line == {**shared, "waiting": 3, "score": 0.123, "level": "INFO", "service": "router"}


def test_a_canonical_line_may_say_the_same_for_people(written: Written) -> None:
    log.event("level_change", message="GPU {host} thermal {}", gpu="host/0")

    assert logfmt(written.text[-1])["message"] == "GPU {host} thermal {}"
    assert written.fields["message"] == "GPU {host} thermal {}"


def test_any_other_line_is_its_words_and_what_it_is_about(written: Written) -> None:
    with logger.contextualize(request="r1"):
        logger.info("model {} is gone", "alpha")

    assert written.text[-1].endswith("INFO    router model alpha is gone request=r1")
    assert (written.fields["message"], written.fields["request"]) == ("model alpha is gone", "r1")


def test_nothing_that_somebody_sent_begins_a_line_or_steers_a_terminal(written: Written) -> None:
    log.event("request", path=_FORGED)
    logger.info("{}", _FORGED)
    try:
        raise ValueError(_FORGED)
    except ValueError:
        logger.exception("broke off")

    for line in (*written.text, *written.json):
        head, *more = line.split("\n")
        assert (head + "".join(more)).isprintable()
        assert all(one.startswith("  | ") for one in more)
    for line in written.terminal:
        assert "\u2028" not in line
        assert "\x1b[2J" not in line
    assert len([line for line in "\n".join(written.text).split("\n") if line.startswith("20")]) == 3
    assert [json.loads(line).get("event") for line in written.json] == ["request", None, None]


@given(value=st.text())
def test_whatever_a_value_is_it_is_read_back_from_one_line(value: str) -> None:
    found = Written()
    sink = logger.add(found, format=lambda _: "", level="DEBUG", catch=False)
    try:
        log.event("request", path=value)
    finally:
        logger.remove(sink)

    if masked_for_log(value) == value:
        assert found.fields["path"] == value
    assert found.text[-1].isprintable()
    found.text[-1].encode()


def test_numbers_that_json_has_not_are_text(written: Written) -> None:
    log.event("dispatch", total_ms=float("nan"), queue_ms=float("inf"))

    assert (written.fields["total_ms"], written.fields["queue_ms"]) == ("nan", "inf")


def test_a_traceback_is_in_the_line_of_its_error(written: Written) -> None:
    try:
        raise ValueError("no good")
    except ValueError:
        logger.exception("broke off")

    assert "ValueError: no good" in written.fields["exception"]
    assert written.text[-1].count("broke off") == 1
    assert "\n  | ValueError: no good" in written.text[-1]


@pytest.mark.parametrize(
    ("said", "secret"),
    [
        ("Redis at redis://bob:hunter2@host:6379/0 is away", "hunter2"),
        ("Redis at rediss://:hun@ter2@host is away", "ter2"),
        ("Authorization: Bearer abcdefgh12345678", "abcdefgh12345678"),
        ('{"authorization": "bearer abcdefgh12345678"}', "abcdefgh12345678"),
        ("authorization=Basic Ym9iOmh1bnRlcjI=", "Ym9iOmh1bnRlcjI"),
        ("x-api-key: abcdefgh12345678", "abcdefgh12345678"),
        ("key orch-0123456789ab-abcdefghijklmnopqrstuvwxyz is unknown", "abcdefghijklmnopqrstuvwxyz"),
        ("Incorrect API key provided: sk-abcdefghijklmnop1234", "abcdefghijklmnop1234"),
        ("GET /x?api_key=abcdefgh12345678&a=1", "abcdefgh12345678"),
        ('got headers {"x-api-key": "leakedsecret1", "a": "b"}', "leakedsecret1"),
        ('{"api_key": "leakedsecret1"}', "leakedsecret1"),
        ('said "authorization":["Basic bGVha2Vk"]', "bGVha2Vk"),
    ],
)
def test_a_secret_is_hidden_wherever_it_stands(written: Written, said: str, secret: str) -> None:
    logger.info("{}", said)
    log.event("dispatch", detail=said, message=said)
    try:
        raise ValueError(said)
    except ValueError:
        logger.exception("broke off")

    for lines in (written.text, written.terminal, written.json):
        assert secret not in "\n".join(lines)
        assert "***" in lines[0]
    assert [json.loads(line)["level"] for line in written.json] == ["INFO", "INFO", "ERROR"]


def test_what_is_no_secret_is_shown(written: Written) -> None:
    said = "first token 30 ms, basic authentication, the bearer of it, key-value, user@host, desk-lamp"
    logger.info("{}", said)

    assert written.fields["message"] == said


def test_the_message_of_a_line_is_found_again_in_it(written: Written) -> None:
    logger.error("api ends: {}", "api.port 8000 is taken")

    assert said_in(written.json[-1]) == "api ends: api.port 8000 is taken"
    for other in ("Traceback", "17", "{}", '{"message": 1}', ""):
        assert said_in(other) == other


def test_a_full_file_makes_way_for_a_new_one_and_its_predecessor_goes(tmp_path: Path) -> None:
    path = tmp_path / "api.log"
    file = BoundedFile(path, most_bytes=1000)
    for number in range(100):
        file.write(f"line {number} " + "x" * 50)
    file.close()

    kept = [one.read_text().splitlines() for one in (tmp_path / "api.log.1", path)]
    assert {one.name for one in tmp_path.iterdir()} == {"api.log", "api.log.1"}
    assert all(sum(map(len, lines)) < 1200 for lines in kept)
    numbers = [int(line.split()[1]) for lines in kept for line in lines]
    assert numbers == list(range(numbers[0], 100))


def test_two_that_share_a_file_turn_it_once(tmp_path: Path) -> None:
    path = tmp_path / "router.log"
    files = [BoundedFile(path, most_bytes=1000) for _ in range(2)]
    for number in range(12):
        for file in files:
            file.write(f"line {number} " + "x" * 50)
    for file in files:
        file.close()

    lines = [line for one in (tmp_path / "router.log.1", path) for line in one.read_text().splitlines()]
    assert sorted(int(line.split()[1]) for line in lines) == sorted([*range(12)] * 2)
