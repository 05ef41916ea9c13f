"""From measured rounds to the figures of the tables: medians over rounds, differences within them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.gateway_parts.load import Load
from benchmarks.gateway_parts.processes import Usage

MB = 2**20

Value = Callable[[Load], float | None]


def p50(load: Load) -> float | None:
    """ms of a whole answer."""
    return load.p50


def p99(load: Load) -> float | None:
    """ms of a whole answer."""
    return load.p99


def first(load: Load) -> float | None:
    """ms to the first token, p50."""
    return load.first_p50


def rate(load: Load) -> float:
    """Answers per second."""
    return load.per_s


def tokens(load: Load) -> float:
    """Chunks per second."""
    return load.tokens_per_s


@dataclass(frozen=True)
class Sample:
    """One measurement of one contestant: what the generator saw, CPU seconds of each part meanwhile.

    ``others`` is how many cores everything else on the machine used (idle contestants included).
    """

    load: Load
    cpu_s: Mapping[str, float]
    others: float = 0.0

    @property
    def cpu_ms_each(self) -> dict[str, float]:
        """CPU milliseconds per answer, by part."""
        answered = max(1, self.load.answered)
        return {part: 1000 * cpu_s / answered for part, cpu_s in self.cpu_s.items()}


Round = Mapping[str, Mapping[str, Sample]]
"""By measure, then by contestant."""


@dataclass(frozen=True)
class Results:
    """Everything of one run; ``rounds`` holds what succeeded only."""

    labels: Mapping[str, str]
    rounds: Sequence[Round]
    memory: Mapping[str, Mapping[str, Usage]]
    skipped: Mapping[str, str] = field(default_factory=dict)
    failures: Sequence[str] = ()

    def figure(self, measure: str, name: str, value: Value) -> float | None:
        """The median over the rounds."""
        return _median(
            [value(one[measure][name].load) for one in self.rounds if name in one.get(measure, {})]
        )

    def added(self, measure: str, name: str, value: Value) -> float | None:
        """The median of what a contestant adds to direct in the same round, in ms."""
        return _median([_added_in(one.get(measure, {}), name, value) for one in self.rounds])

    def against(self, measure: str, name: str, other: str, value: Value) -> float | None:
        """How many times the other's figure of the same round, the median over the rounds.

        A shared machine changes its speed from one round to the next, much less within one.
        """
        return _median(
            [
                ratio(_in(one.get(measure, {}), name, value), _in(one.get(measure, {}), other, value))
                for one in self.rounds
            ]
        )

    def added_against(self, measure: str, name: str, other: str, value: Value) -> float | None:
        """How many times what the other adds in the same round, the median over the rounds."""
        return _median(
            [
                ratio(
                    _added_in(one.get(measure, {}), name, value),
                    _added_in(one.get(measure, {}), other, value),
                )
                for one in self.rounds
            ]
        )

    def cpu_ms(self, name: str, measure: str = "json_16") -> dict[str, float]:
        """CPU milliseconds per request by part, medians over the rounds; empty for direct."""
        samples = [one[measure][name].cpu_ms_each for one in self.rounds if name in one.get(measure, {})]
        parts = samples[0] if samples else {}
        return {part: statistics.median(sample[part] for sample in samples) for part in parts}

    def rss_mb(self, name: str) -> dict[str, float]:
        return {part: used.rss_bytes / MB for part, used in self.memory.get(name, {}).items()}

    @property
    def others(self) -> tuple[float, float]:
        """Cores used by other work meanwhile: the median over all samples, and the most."""
        found = [
            one.others for taken in self.rounds for samples in taken.values() for one in samples.values()
        ]
        return (statistics.median(found), max(found)) if found else (0.0, 0.0)

    def errors(self, name: str) -> int:
        return sum(
            samples[name].load.errors for one in self.rounds for samples in one.values() if name in samples
        )


def _in(samples: Mapping[str, Sample], name: str, value: Value) -> float | None:
    """A contestant's figure in one round."""
    return value(samples[name].load) if name in samples else None


def _added_in(samples: Mapping[str, Sample], name: str, value: Value) -> float | None:
    here, direct = _in(samples, name, value), _in(samples, "direct", value)
    return None if here is None or direct is None else here - direct


@dataclass(frozen=True)
class Aim:
    """One thing that we want to reach; ``met`` is None where it can't be told."""

    text: str
    measured: str
    met: bool | None


def aims(results: Results, name: str) -> list[Aim]:
    """What the project set itself for its gateway, the nearer and the farther aim."""
    added = results.added_against("json_1", "litellm", name, p50)
    rates = results.against("json_16", name, "litellm", rate)
    chunks = results.against("chunks_32", name, "nginx", tokens)
    found = [
        *(
            _at_least(f"added p50 at 1 at most LiteLLM's / {factor}", added, factor, "/ ")
            for factor in (8, 12)
        ),
        *(
            _at_least(f"requests/s at 16 at least {factor} x LiteLLM's", rates, factor, "", " x")
            for factor in (8, 15)
        ),
    ]
    for streams, limit_ms in ((1, 3.0), (16, 8.0)):
        late = results.added(f"stream_{streams}", name, first)
        met = None if late is None else late <= limit_ms
        shown = "-" if late is None else f"{late:.2f} ms"
        found.append(Aim(f"added first token at {streams} at most {limit_ms:g} ms", shown, met))
    return [*found, _at_least("chunks/s at least 0.65 of nginx's", chunks, 0.65, "", " x")]


def _at_least(text: str, found: float | None, wanted: float, before: str = "", after: str = "") -> Aim:
    shown = "-" if found is None else f"{before}{found:.3g}{after}"
    return Aim(text, shown, None if found is None else found >= wanted)


def ratio(one: float | None, other: float | None) -> float | None:
    """None where either is missing or nothing can be divided by."""
    return None if one is None or other is None or other <= 0 else one / other


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
