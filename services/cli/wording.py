"""Figures in words: spans, ages, memory, and which values are good or bad news."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from services.cli.blocks import Cell, Tone

UNKNOWN = "-"
_SECOND_MS, _MINUTE_MS, _HOUR_MS = 1000, 60_000, 3_600_000

_TONES: Mapping[str, Tone] = {
    "succeeded": Tone.GOOD, "failed": Tone.BAD, "dead": Tone.BAD, "expired": Tone.WARNING,
    "cancelled": Tone.WARNING, "queued": Tone.FAINT,
    "low": Tone.GOOD, "normal": Tone.GOOD, "high": Tone.WARNING, "critical": Tone.BAD,
    "warning": Tone.WARNING, "throttling": Tone.WARNING,
    "resident": Tone.GOOD, "loading": Tone.WARNING, "sleeping": Tone.FAINT, "unloaded": Tone.FAINT,
    "open": Tone.BAD, "half_open": Tone.WARNING,
    "dispatch": Tone.GOOD, "hold": Tone.WARNING, "reject": Tone.BAD,
    "good": Tone.GOOD, "weak": Tone.WARNING, "none": Tone.FAINT,
    "unknown": Tone.FAINT, UNKNOWN: Tone.FAINT,
}  # fmt: skip


def toned(value: object) -> Cell:
    """A state or a level in its colour; unknown ones in none."""
    text = UNKNOWN if value is None else str(value)
    return Cell(text, _TONES.get(text.removeprefix("job."), Tone.PLAIN))


def shown(value: object) -> str:
    return UNKNOWN if value is None or value == "" else str(value)


def span(ms: float | None) -> str:
    """A span of milliseconds, in the unit that suits it."""
    if ms is None:
        return UNKNOWN
    if ms < _SECOND_MS:
        return f"{ms:.0f} ms"
    if ms < _MINUTE_MS:
        return f"{ms / _SECOND_MS:.1f} s"
    if ms < _HOUR_MS:
        minutes, seconds = divmod(round(ms / _SECOND_MS), 60)
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(round(ms / _MINUTE_MS), 60)
    return f"{hours} h {minutes} min"


def age(at_ms: float | None, now_ms: float) -> str:
    """How long ago a moment was; clocks of two machines may differ a little."""
    return UNKNOWN if at_ms is None else span(max(0.0, now_ms - at_ms))


def clock(at_ms: float) -> str:
    """The time of day, on this machine's clock and in its zone."""
    return datetime.fromtimestamp(at_ms / 1000).astimezone().strftime("%H:%M:%S.%f")[:-3]


def gigabytes(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f} GB"


def percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f} %"


def number(value: float | None, digits: int = 1) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def degrees(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f} C"


def between(low: float | None, middle: float | None, high: float | None) -> str:
    """A forecast with its interval."""
    if middle is None:
        return UNKNOWN
    return f"{middle:.1f}" if low is None or high is None else f"{middle:.1f} ({low:.1f} to {high:.1f})"
