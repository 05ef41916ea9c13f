"""What each command shows of an answer of the API, in a pipe."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from services.cli.app import COMMANDS, build
from services.cli.blocks import plain
from services.cli.command import Command, Group
from services.cli.commands.benchmark import benchmark_blocks
from services.cli.commands.config import problems
from services.cli.commands.decisions import decision
from services.cli.commands.forecast import forecast_blocks
from services.cli.commands.models import ranking_blocks
from services.cli.commands.rebalance import rebalance_blocks
from services.cli.failures import MEANINGS, ExitCode, Refused, exit_code
from services.cli.follow import Event
from services.cli.job_view import event_cells, job_blocks, job_table, require_success
from services.cli.status_view import status_blocks
from shared.errors import ConfigError, StoreUnavailable
from shared.store.records import StreamEntry

_FAILED: dict[str, Any] = {
    "job_id": "j-1", "state": "failed", "agent_type": "Chat", "model": None, "priority": 5,
    "submitted_ms": 1_000, "deadline_ms": 601_000, "attempt": 2, "tries": 1,
    "decision": {"action": "dispatch", "model": "alpha", "backend": "vllm", "url": "http://h:1", "gpu": "h/0",
                 "reason": "lowest score", "code": "chosen"},
    "position": None,
    "timings": {"queued_ms": 20, "first_token_ms": None, "running_ms": 1500, "total_ms": 1520},
    "result": None, "error": {"type": "backend_rejected", "detail": "prompt too long"}, "metadata": None,
}  # fmt: skip
_HELD: dict[str, Any] = {
    **_FAILED, "job_id": "j-2", "state": "queued", "attempt": 0, "tries": 0, "position": 3, "error": None,
    "decision": {"action": "hold", "reason": "all slots are busy", "code": "busy"}, "model": "beta",
    "timings": {"queued_ms": None, "first_token_ms": None, "running_ms": None, "total_ms": None},
}  # fmt: skip
_GPU: dict[str, Any] = {
    "gpu": "h/0", "name": "RTX 3090", "memory_used_gb": 12.06, "memory_total_gb": 24.0,
    "utilization_percent": 50.25,
    "gpu_utilization_percent": 7.0, "temperature_c": 61.0, "power_draw_w": None, "pressure": "normal",
    "thermal": "normal", "in_flight": 1, "sample_age_ms": 4200, "stale": True, "source": "nvml",
    "detail": "the latest sample is 4200 ms old",
}  # fmt: skip
_MODEL: dict[str, Any] = {
    "residence": "resident", "backend": "vllm", "gpu": "h/0", "vram_gb": None, "in_flight": 1,
    "slots": 4, "queue_size": 2, "avg_latency_ms": 840.0, "failure_count": 3, "breaker": {"state": "open"},
    "agent_types": ["Chat"], "simulated": False, "probe_error": None, "last_error": "bad",
}  # fmt: skip


def every_command() -> list[tuple[str, Command]]:
    found: list[tuple[str, Command]] = []
    for command in COMMANDS:
        if isinstance(command, Group):
            found += [(f"{command.name} {inner.name}", inner) for inner in command.commands]
            found += [(command.name, command.alone)] if command.alone else []
        else:
            found.append((command.name, command))
    return found


def test_the_jobs_of_a_list_say_why_they_failed_or_wait() -> None:
    assert plain([job_table([_FAILED, _HELD], now_ms=61_000)]) == (
        "JOB  STATE   MODEL  AGENT        AGE  QUEUED  TOTAL  WHY\n"
        "j-1  failed  alpha  Chat   1 min 0 s   20 ms  1.5 s  backend_rejected: prompt too long\n"
        "j-2  queued  beta   Chat   1 min 0 s       -      -  all slots are busy\n"
    )


def test_a_job_shows_what_is_known_of_it() -> None:
    assert plain(job_blocks(_FAILED, now_ms=3_000)) == (
        "job         j-1\n"
        "state       failed\n"
        "error       backend_rejected: prompt too long\n"
        "agent type  Chat\n"
        "priority    5\n"
        "submitted   2.0 s ago\n"
        "decision    dispatch\n"
        "model       alpha\n"
        "backend     vllm http://h:1\n"
        "gpu         h/0\n"
        "reason      lowest score\n"
        "attempts    2 (1 charged)\n"
        "queued      20 ms\n"
        "running     1.5 s\n"
        "total       1.5 s\n"
    )
    answered = {
        **_FAILED,
        "error": None,
        "result": {"text": "Hello.\nYou.", "usage": {"completion_tokens": 4}},
    }
    assert plain(job_blocks(answered, now_ms=3_000)).endswith("output      4 tokens\n\nHello.\nYou.\n")


def test_a_job_that_did_not_succeed_is_refused_with_its_reason() -> None:
    with pytest.raises(Refused, match="job j-1 is failed: backend_rejected"):
        require_success(_FAILED)
    with pytest.raises(Refused, match=r"job j-1 is cancelled$"):
        require_success({**_FAILED, "state": "cancelled", "error": None})
    require_success({**_FAILED, "state": "succeeded", "error": None})


def test_an_event_is_a_line_with_what_explains_it() -> None:
    event = Event("1000-0", "job.retried", {"model": "alpha", "reason": "503", "state": "queued", "v": "1"})
    time, kind, details = event_cells(event)
    assert time.text.endswith(":01.000")
    assert (kind.text, details.text) == ("job.retried", "model=alpha reason=503")


def test_the_status_shows_what_is_simulated_stale_held_and_silent() -> None:
    status = {
        "simulated": True, "gpu": _GPU, "gpus": [_GPU],
        "models": {"alpha": _MODEL, "beta": {**_MODEL, "simulated": True, "last_error": None}},
        "queue": {"waiting": 2, "running": 1, "bound": 100,
                  "targets": {"auto:Chat": {"waiting": 2, "hold": {"reason": "too hot"}}}},
        "services": [{"instance": "router-h", "service": "router", "alive": False, "age_ms": 12_000,
                      "address": "pid 7", "version": "0.1.0"}],
    }  # fmt: skip
    assert plain(status_blocks(status)) == (
        "SIMULATED, not real: the model beta\n"
        "\n"
        "GPU        MEMORY  USED  COMPUTE  HEAT  POWER  PRESSURE  THERMAL  RUNNING  SAMPLE AGE  NAME\n"
        "h/0  12.1/24.0 GB  50 %      7 %  61 C      -  normal    normal         1       4.2 s  RTX 3090\n"
        "\n"
        "h/0: the latest sample is 4200 ms old\n"
        "\n"
        "MODEL             STATE     GPU  GB  BUSY  QUEUE  LATENCY  FAILURES  BREAKER  BACKEND  AGENTS  "
        "LAST ERROR\n"
        "alpha             resident  h/0   -   1/4      2   840 ms         3  open     vllm     Chat    bad\n"
        "beta (simulated)  resident  h/0   -   1/4      2   840 ms         3  open     vllm     Chat\n"
        "\n"
        "2 jobs wait (at most 100), 1 run\n"
        "\n"
        "QUEUE      WAITING  HELD BECAUSE\n"
        "auto:Chat        2  too hot\n"
        "\n"
        "SERVICE   KIND    STATE        HEARD  ADDRESS  VERSION\n"
        "router-h  router  silent  12.0 s ago  pid 7    0.1.0\n"
    )


def test_a_ranking_says_what_would_be_done_and_why_others_come_later() -> None:
    ranking = {
        "notes": ["h/0 is stale"], "decision": {"action": "dispatch", "reason": "alpha wins"},
        "models": [
            {"rank": 1, "model": "alpha", "score": 1.0, "estimated_duration_ms": 1200.0,
             "residence": "resident", "gpu": "h/0", "reason": "lowest", "would_be_chosen": True},
            {"rank": None, "model": "beta", "score": 0.0, "estimated_duration_ms": None,
             "residence": "unloaded", "gpu": None, "reason": "not loaded", "would_be_chosen": False},
        ],
    }  # fmt: skip
    assert plain(ranking_blocks(ranking)) == (
        "dispatch: alpha wins\n\nh/0 is stale\n\n"
        "RANK  MODEL  SCORE  ESTIMATE  STATE     GPU  REASON\n"
        "   1  alpha   1.00     1.2 s  resident  h/0  lowest\n"
        "   -  beta    0.00         -  unloaded  -    not loaded\n"
    )


def test_a_benchmark_shows_its_percentiles_and_what_it_ran_under() -> None:
    spread = {"p50": 10.0, "p90": 20.0, "p99": 30.04, "mean": 12.0}
    body = {
        "model": "alpha", "state": "succeeded", "requests": 4, "succeeded": 3,
        "errors": {"backend_error": 1}, "served_by": {"alpha": 3}, "output_tokens_per_second": 55.5,
        "output_tokens": 96, "yielded_ms": 0,
        "levels": [{"gpu": "h/0", "pressure": "low", "thermal": "normal"}], "ended_early": None,
        "benchmark_id": "b-1", "simulated": False, "ttft_ms": spread, "latency_ms": None,
        "queue_wait_ms": None,
        "prefill_tokens_per_second": None, "decode_tokens_per_second": spread,
    }  # fmt: skip
    assert plain(benchmark_blocks(body)) == (
        "model        alpha\n"
        "state        succeeded\n"
        "requests     3 of 4 succeeded\n"
        "errors       1 backend_error\n"
        "served by    alpha (3)\n"
        "output       55.5 tokens/s, 96 tokens\n"
        "memory/heat  h/0 low/normal\n"
        "benchmark    b-1\n"
        "\n"
        "MEASURED                  P50   P90   P99  MEAN\n"
        "time to first token, ms  10.0  20.0  30.0  12.0\n"
        "decode, tokens/s         10.0  20.0  30.0  12.0\n"
    )


def test_a_forecast_shows_intervals_and_how_good_it_has_been() -> None:
    known = {"low": 1.0, "mid": 2.0, "high": 3.0}
    unknown = {"low": None, "mid": None, "high": None}
    gpu = {
        "gpu": "h/0", "current_usage": {"used_gb": 8.0, "total_gb": 24.0}, "projected_usage_gb": known,
        "projected_headroom_gb": known,
        "available_for_inference": {"now_gb": 13.0, "projected_gb": known, "at_peak_gb": None},
        "forecast": {"quality": "measured", "mase": 0.93, "coverage": 0.9}, "detail": "little history",
    }  # fmt: skip
    body = {
        "hours": 6.0, "level": 0.9, "gpus": [gpu],
        "requests_per_minute": {
            "alpha": {"now": 2.0, "projected": unknown, "forecast": {"quality": "no_samples", "mase": None}},
        },
    }  # fmt: skip
    lines = plain(forecast_blocks(body)).splitlines()
    assert lines[0] == "in 6 h; intervals are to cover 90 % of what comes"
    assert lines[3].split("  ")[-1] == "error 0.93 of the last value's, covers 90 %"
    assert "2.0 (1.0 to 3.0)" in lines[3]
    assert lines[5] == "h/0: little history"
    assert lines[8] == "alpha               2.0     -  no samples"


def test_a_rebalance_shows_each_action_with_what_it_costs_and_brings() -> None:
    action = {
        "action": "load", "model": "beta", "gpu": "h/0", "to_gpu": None, "unloads": ["alpha"],
        "reason": "three jobs wait", "changes": "frees the queue",
    }  # fmt: skip
    assert plain(rebalance_blocks({"actions": [action], "notes": ["h/1 is silent"]})) == (
        "h/1 is silent\n\n"
        "ACTION  MODEL  GPU  UNLOADS  REASON           WHAT IT BRINGS\n"
        "load    beta   h/0  alpha    three jobs wait  frees the queue\n"
    )
    assert plain(rebalance_blocks({"actions": [], "notes": []})) == "nothing is worth doing\n"


def test_a_decision_as_json_has_its_nested_parts_read() -> None:
    entry = StreamEntry("5-0", {"action": "hold", "scores": '{"a": 1.5}', "left_out": "{broken"})
    assert decision(entry) == {"id": "5-0", "action": "hold", "scores": {"a": 1.5}, "left_out": "{broken"}


def test_the_problems_of_settings_are_told_one_by_one_and_without_secrets() -> None:
    message = "my.yaml: unknown key 'a'; my.yaml: redis.url = 'http://:secret@h': is wrong"
    assert problems(message, "my.yaml") == ["unknown key 'a'", "redis.url = 'http://***@h': is wrong"]


def test_every_error_has_the_code_that_help_says() -> None:
    assert exit_code(ConfigError("x")) is ExitCode.USAGE
    assert exit_code(StoreUnavailable("x")) is ExitCode.UNREACHABLE
    assert set(MEANINGS) == set(ExitCode)


@pytest.mark.parametrize(
    ("words", "command"), every_command(), ids=lambda it: it if isinstance(it, str) else ""
)
def test_every_command_has_a_summary_and_an_example_of_its_own(words: str, command: Command) -> None:
    assert command.summary.endswith(".")
    assert len(command.summary) <= 60
    assert command.examples
    for example in command.examples:
        assert example.startswith(words.split()[0])
        assert any(line.strip() == f"gpu-orchestrator {example}" for line in command.help.splitlines())
    # On a terminal square brackets in a help text would be taken as markup and vanish.
    assert "[" not in command.help


def test_two_command_lines_can_be_built_one_for_terminals_and_one_for_pipes() -> None:
    assert build(pretty=True).rich_markup_mode == "rich"
    assert build(pretty=False).rich_markup_mode is None


def test_help_imports_nothing_that_takes_long() -> None:
    heavy = ("aiohttp", "asyncio", "fastapi", "pydantic", "redis", "rich", "yaml")
    program = f"import sys, services.cli.app; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
