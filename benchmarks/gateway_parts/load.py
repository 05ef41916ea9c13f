"""The stub backend and the load generator (C, compiled here), and what one measurement says."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gateway_parts.processes import Bench, pinned

SOURCES = Path(__file__).parent
MARK = b"Qword"
"""One generated token of the stub, whatever a proxy makes of the JSON around it."""
_PAST_THE_END_S = 30.0
"""The generator waits 2 s for answers that are on their way; far beyond that it hangs."""


class NoCompiler(Exception):
    """Neither cc nor gcc is here."""


class LoadFailed(Exception):
    """Nothing but errors came back; the message is the first of them."""


@dataclass(frozen=True)
class Measure:
    """One kind of load: so many requests in flight; ``pace_us`` before each chunk of a stream."""

    name: str
    in_flight: int
    stream: bool = False
    chunks: int = 4
    pace_us: int = 0
    warm_up_s: float = 0.5
    seconds: float = 3.0

    @property
    def body(self) -> bytes:
        prompt = f"pace_us={self.pace_us} chunks={self.chunks}"
        asked = {
            "model": "stub",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self.chunks,
            "stream": self.stream,
        }
        return json.dumps(asked, separators=(",", ":")).encode()

    @property
    def request(self) -> bytes:
        """The bytes that go over the wire, the same for every contestant."""
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer none\r\nContent-Length: {len(self.body)}\r\n\r\n"
        )
        return head.encode() + self.body


FULL = (
    Measure("json_1", 1),
    Measure("json_16", 16),
    Measure("stream_1", 1, stream=True, chunks=50, pace_us=10_000, warm_up_s=0.6, seconds=5.0),
    Measure("stream_16", 16, stream=True, chunks=50, pace_us=10_000, warm_up_s=0.6),
    Measure("chunks_32", 32, stream=True, chunks=1000, pace_us=1000, warm_up_s=1.0),
)
QUICK = (
    Measure("json_1", 1, warm_up_s=0.1, seconds=0.5),
    Measure("json_16", 16, warm_up_s=0.3, seconds=0.7),
    Measure("stream_1", 1, stream=True, chunks=5, pace_us=10_000, warm_up_s=0.1, seconds=0.8),
    Measure("stream_16", 16, stream=True, chunks=5, pace_us=10_000, warm_up_s=0.2, seconds=0.7),
    Measure("chunks_32", 32, stream=True, chunks=100, pace_us=1000, warm_up_s=0.2, seconds=0.4),
)
"""Small, to see that it runs; the figures mean little."""


@dataclass(frozen=True)
class Load:
    """What came back. Times in ms, None where nothing ended; rates per second.

    ``answered`` counts every good answer, warm-up included; ``generator`` is the share of a core that the
    generator itself used, of the ``wall_s`` that it ran.
    """

    answered: int
    errors: int
    per_s: float
    tokens_per_s: float
    p50: float | None
    p99: float | None
    first_p50: float | None
    first_p99: float | None
    generator: float
    wall_s: float

    @property
    def plain(self) -> dict[str, float | None]:
        return asdict(self)


def build(directory: Path, name: str, sources: Path = SOURCES) -> Path:
    """Compile ``name``.c; the program's path. Raises ``NoCompiler``."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoCompiler(
            "the stub and the load generator need a C compiler (cc or gcc): whatever is written in Python "
            "would be slower than what it measures"
        )
    program = directory / name
    warnings = ["-Wall", "-Wextra", "-Werror"]
    source = sources / f"{name}.c"
    subprocess.run([compiler, "-O2", *warnings, "-o", str(program), str(source)], check=True)
    return program


def measured(bench: Bench, port: int, measure: Measure) -> Load:
    """Load one port; raises ``LoadFailed`` where nothing good came back."""
    request = bench.directory / f"{measure.name}.request"
    request.write_bytes(measure.request)
    words = [bench.load, port, measure.in_flight, measure.warm_up_s, measure.seconds, request]
    with pinned(bench.cores.generator):
        done = subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            timeout=measure.warm_up_s + measure.seconds + _PAST_THE_END_S,
            check=False,
        )
    if done.returncode != 0:
        raise LoadFailed(" ".join(done.stderr.split())[:300] or f"the generator ended with {done.returncode}")
    return _load(json.loads(done.stdout), measure.seconds)


def _load(said: dict[str, float | list[float]], seconds: float) -> Load:
    numbers = {name: value for name, value in said.items() if isinstance(value, int | float)}
    p50, p99 = _pair(said["total_ms"])
    first_p50, first_p99 = _pair(said["first_ms"])
    return Load(
        answered=int(numbers["answered"]),
        errors=int(numbers["errors"]),
        per_s=numbers["completed"] / seconds,
        tokens_per_s=numbers["marks"] / seconds,
        p50=p50,
        p99=p99,
        first_p50=first_p50,
        first_p99=first_p99,
        generator=numbers["cpu_s"] / numbers["wall_s"],
        wall_s=numbers["wall_s"],
    )


def _pair(values: float | Sequence[float]) -> tuple[float | None, float | None]:
    if isinstance(values, Sequence) and len(values) == 2:
        return values[0], values[1]
    return None, None
