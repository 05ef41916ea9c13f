"""The in-process balancer: the specification's example, its figures, registration, choice."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from shared.balancer import BackendType, LoadBalancer, get_load_balancer
from shared.errors import InvalidRequest
from shared.states import Action
from tests.kit.balancer import Bench, card, specified

ROOT = Path(__file__).resolve().parents[2]
LLAMA, VLLM = BackendType.LLAMA_CPP, BackendType.VLLM
EXAMPLE = """
from shared.balancer import get_load_balancer, BackendType

balancer = get_load_balancer()

# Register models
balancer.register_model("tiny-llama-1b", BackendType.LLAMA_CPP, 2.3, 8080)
balancer.register_model("bi-medix2", BackendType.LLAMA_CPP, 6.5, 8081)
balancer.register_model("openins-llama3-8b", BackendType.LLAMA_CPP, 7.8, 8084)

# Make smart routing decision
decision = await balancer.decide_model_and_backend(
    agent_type="Chat",
    prefer_llama_cpp=True,
    min_context_tokens=2048
)

print(f"Route to: {decision.model_name} on port {decision.port}")
print(f"Backend: {decision.backend}")
print(f"Reason: {decision.reason}")
print(f"Est. Duration: {decision.estimated_duration_ms:.0f}ms")
"""
"""The specification's load balancing decision example, word for word but for its import line."""
_RUN_AT_TOP_LEVEL = (
    "import ast, asyncio, sys, threading\n"
    "code = compile(sys.stdin.read(), 'example', 'exec', flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)\n"
    "names = {}\n"
    "asyncio.run(eval(code, names))\n"
    "left = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]\n"
    "assert all(thread.daemon for thread in left), left\n"
)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = specified()
    yield made
    await made.balancer.aclose()


def example_prints(source: str) -> Mapping[str, str]:
    """What an example with top-level await prints, by the words before the colon, from a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN_AT_TOP_LEVEL],
        input=source, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


def check_example(printed: Mapping[str, str]) -> None:
    assert printed["Backend"] == "llama_cpp"
    assert re.fullmatch(
        r"(tiny-llama-1b on port 8080|bi-medix2 on port 8081|openins-llama3-8b on port 8084)",
        printed["Route to"],
    )
    assert "memory" in printed["Reason"]
    assert re.fullmatch(r"(2560|3413)ms", printed["Est. Duration"])


def test_the_example_of_the_specification_works_as_it_stands() -> None:
    check_example(example_prints(EXAMPLE))


def test_the_example_in_the_readme_is_that_of_the_specification_and_works() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(blocks) == 1
    assert ast.dump(ast.parse(blocks[0])) == ast.dump(ast.parse(EXAMPLE))
    check_example(example_prints(blocks[0]))


def test_there_is_one_balancer_per_process_from_whatever_thread_it_is_asked_for() -> None:
    found: list[LoadBalancer] = []
    threads = [threading.Thread(target=lambda: found.append(get_load_balancer())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in found}) == 1
    assert found[0] is get_load_balancer()


def test_importing_starts_no_thread_and_reads_nothing() -> None:
    code = (
        "import threading, shared.balancer as b\n"
        "assert threading.active_count() == 1\n"
        "assert b.get_load_balancer().samples == () and threading.active_count() == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=30)


def test_the_signature_begins_as_in_the_specification() -> None:
    names = list(inspect.signature(LoadBalancer.decide_model_and_backend).parameters)
    assert names[1:4] == ["agent_type", "prefer_llama_cpp", "min_context_tokens"]
    assert list(inspect.signature(LoadBalancer.register_model).parameters)[1:5] == [
        "name", "backend", "vram_gb", "port",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "port", "seconds"),
    [("tiny-llama-1b", 8080, 2.5), ("bi-medix2", 8081, 3.4), ("openins-llama3-8b", 8084, 3.4)],
)
async def test_512_tokens_take_what_the_specification_says(
    bench: Bench, name: str, port: int, seconds: float
) -> None:
    decision = await bench.decide(model=name)
    assert (decision.action, decision.model_name, decision.port) == (Action.DISPATCH, name, port)
    assert decision.estimated_duration_ms / 1000 == pytest.approx(seconds, abs=0.07)
    assert decision.url == f"http://127.0.0.1:{port}"


async def test_at_low_pressure_a_larger_model_is_preferred_and_at_high_a_smaller_one() -> None:
    chosen = {}
    for share in (0.3, 0.8):
        made = Bench(card(share))
        for name, vram_gb, port in (("small", 4.0, 1001), ("large", 7.0, 1002)):
            made.balancer.register_model(name, LLAMA, vram_gb, port)
        decision = await made.decide()
        chosen[share] = decision.model_name
        assert decision.parts["small"].size != decision.parts["large"].size
    assert chosen == {0.3: "large", 0.8: "small"}


async def test_a_context_that_was_not_registered_is_2048_tokens(bench: Bench) -> None:
    assert (await bench.decide(min_context_tokens=2048)).action is Action.DISPATCH
    refused = await bench.decide(min_context_tokens=2049)
    assert (refused.action, refused.code) == (Action.REJECT, "context_too_small")
    bench.balancer.register_model("roomy", LLAMA, 5.0, 8090, context_tokens=8192)
    assert (await bench.decide(min_context_tokens=2049)).model_name == "roomy"


async def test_an_agent_type_that_nobody_serves_is_rejected_and_no_model_at_all_is_a_hold() -> None:
    made = Bench(card())
    assert (await made.decide(agent_type="Chat")).action is Action.HOLD
    made.balancer.register_model("m", LLAMA, 2.0, 8080, agent_types=("Chat",))
    refused = await made.decide(agent_type="Law")
    assert (refused.action, refused.code, refused.model_name) == (Action.REJECT, "unknown_agent_type", None)


async def test_llama_cpp_is_taken_where_it_is_preferred() -> None:
    made = Bench(card())
    made.balancer.register_model("a-vllm", VLLM, 7.0, 8000, slots=2)
    made.balancer.register_model("b-llama", LLAMA, 7.0, 8001)
    assert (await made.decide(priority=1)).backend is VLLM
    preferred = await made.decide(priority=1, prefer_llama_cpp=True)
    # Twice, after its two slots against one are no merit.
    assert preferred.parts["a-vllm"].mode == 2.0 * 2


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"vram_gb": -1, "port": 1}, "vram_gb"),
        ({"port": 70000}, "port"),
        ({}, "port"),
        ({"port": 1, "colour": "red"}, "colour"),
    ],
)
def test_a_wrong_registration_names_the_field(bench: Bench, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        bench.balancer.register_model("m", LLAMA, **fields)
    assert "m" not in bench.balancer.models


def test_a_model_that_is_not_registered_is_named_with_those_that_are(bench: Bench) -> None:
    for call in (
        lambda: bench.balancer.record_latency("nobody", 1.0),
        lambda: bench.balancer.record_failure("nobody"),
        lambda: bench.balancer.unregister_model("nobody"),
        lambda: bench.balancer.request("nobody").__enter__(),
    ):
        with pytest.raises(InvalidRequest, match="'nobody' is not registered; known: bi-medix2"):
            call()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"max_tokens": -100}, "max_tokens"),
        ({"max_tokens": float("nan")}, "max_tokens"),
        ({"priority": 100}, "priority"),
        ({"mode": "x"}, "mode"),
        ({"min_context_tokens": "many"}, "min_context_tokens"),
        ({"deadline_in_ms": float("nan")}, "deadline_in_ms"),
        ({"agent_type": ""}, "agent_type"),
        ({"agent_type": 5}, "agent_type"),
    ],
)
async def test_a_wrong_argument_is_named(arguments: dict[str, Any], field: str) -> None:
    balancer = LoadBalancer()
    balancer.register_model("a", BackendType.LLAMA_CPP, 2.3, 8080)

    with pytest.raises(InvalidRequest) as refusal:
        await balancer.decide_model_and_backend(**arguments)

    assert refusal.value.field == field
