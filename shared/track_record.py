"""How one model has fared in this process: averages, failures and breaker, by the rules of common.lua."""

from __future__ import annotations

from dataclasses import dataclass, replace

from shared.errors import InvalidRequest

EMA_WEIGHT = 0.2
"""A moving average that mostly stands on the last ten requests."""
FAILURE_WEIGHT = 0.3
FAILURE_HALF_LIFE_S = 60.0
OPEN_AFTER_IN_ROW = 3
OUTCOME_WINDOW = 20
OPEN_FIRST_S = 5.0
OPEN_MOST_S = 300.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What one successful request teaches. Without ``first_token_ms`` its prefill counts as output time.

    Raises ``InvalidRequest`` for a negative figure or one that is not a number.
    """

    latency_ms: float
    output_tokens: int | None = None
    prompt_tokens: int | None = None
    first_token_ms: float | None = None

    def __post_init__(self) -> None:
        for name in ("latency_ms", "output_tokens", "prompt_tokens", "first_token_ms"):
            value: float | None = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise InvalidRequest(name, f"is {value}: must be a finite number, 0 or more")

    @property
    def seconds_per_prompt_token(self) -> float | None:
        """Prefill speed, None where it can't be told."""
        if not self.prompt_tokens or self.first_token_ms is None:
            return None
        return self.first_token_ms / 1000 / self.prompt_tokens

    @property
    def seconds_per_output_token(self) -> float | None:
        """Output speed, None where it can't be told."""
        if self.first_token_ms is None:
            return self.latency_ms / 1000 / self.output_tokens if self.output_tokens else None
        if self.output_tokens is None or self.output_tokens < 2:
            return None
        return max(0.0, self.latency_ms - self.first_token_ms) / 1000 / (self.output_tokens - 1)


@dataclass(frozen=True, slots=True)
class TrackRecord:
    """Every change answers a new record; times are seconds of one monotonic clock."""

    in_flight: int = 0
    samples: int = 0
    avg_latency_ms: float | None = None
    seconds_per_prompt_token: float | None = None
    seconds_per_output_token: float | None = None
    avg_output_tokens: float | None = None
    failure_count: int = 0
    failures_in_row: int = 0
    outcomes: tuple[bool, ...] = ()
    open_until_s: float | None = None
    opens: int = 0
    faded_s: float = 0.0
    failure_share: float = 0.0  # as of ``faded_s``

    def failure_ema(self, now_s: float) -> float:
        """The share of failures (0..1), which halves every minute without news."""
        return float(self.failure_share * 2 ** (-max(0.0, now_s - self.faded_s) / FAILURE_HALF_LIFE_S))

    def started(self) -> TrackRecord:
        return replace(self, in_flight=self.in_flight + 1)

    def ended(self) -> TrackRecord:
        """A request is over, whatever came of it."""
        return replace(self, in_flight=max(0, self.in_flight - 1))

    def succeeded(self, answer: Answer, now_s: float) -> TrackRecord:
        """Moves the averages and shuts an open breaker."""
        length = None if answer.output_tokens is None else float(answer.output_tokens)
        known = () if self.open_until_s is not None else self.outcomes
        return replace(
            self,
            samples=self.samples + 1,
            avg_latency_ms=self._mean(self.avg_latency_ms, answer.latency_ms),
            seconds_per_prompt_token=self._mean(
                self.seconds_per_prompt_token, answer.seconds_per_prompt_token
            ),
            seconds_per_output_token=self._mean(
                self.seconds_per_output_token, answer.seconds_per_output_token
            ),
            avg_output_tokens=self._mean(self.avg_output_tokens, length),
            failures_in_row=0,
            failure_share=self.failure_ema(now_s) * (1 - FAILURE_WEIGHT),
            faded_s=now_s,
            outcomes=(*known, True)[-OUTCOME_WINDOW:],
            open_until_s=None,
            opens=0,
        )

    def failed(self, now_s: float) -> TrackRecord:
        """Opens the breaker after 3 failures in a row or above half of the last 20.

        A failed probe of a half-open breaker shuts it for twice as long, up to ``OPEN_MOST_S``.
        """
        share = self.failure_ema(now_s)
        noted = replace(
            self,
            failure_count=self.failure_count + 1,
            failures_in_row=self.failures_in_row + 1,
            failure_share=share + (1 - share) * FAILURE_WEIGHT,
            faded_s=now_s,
            outcomes=(*self.outcomes, False)[-OUTCOME_WINDOW:],
        )
        return noted._opened(now_s) if noted._trips(now_s) else noted

    def _trips(self, now_s: float) -> bool:
        if self.open_until_s is not None:
            return now_s >= self.open_until_s
        often = len(self.outcomes) == OUTCOME_WINDOW and 2 * self.outcomes.count(False) > OUTCOME_WINDOW
        return often or self.failures_in_row >= OPEN_AFTER_IN_ROW

    def _opened(self, now_s: float) -> TrackRecord:
        pause_s = min(OPEN_FIRST_S * 2.0 ** min(self.opens, 30), OPEN_MOST_S)
        return replace(self, open_until_s=now_s + pause_s, opens=self.opens + 1)

    def _mean(self, old: float | None, value: float | None) -> float | None:
        if value is None or old is None:
            return old if value is None else value
        return old + max(EMA_WEIGHT, 1 / (self.samples + 1)) * (value - old)
