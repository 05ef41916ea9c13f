"""Probing one model of a llama.cpp in router mode: seen as it stands, and never loaded or woken by it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from shared.backends.probe import Probe, Props, probe
from shared.states import BackendType, Residence
from tests.kit.faulty_server import answer, faulty_server
from tests.kit.llama_router import LlamaRouter

LISTED = ("unloaded", "downloading", "loading", "loaded", "sleeping")


@pytest.fixture
async def router() -> AsyncIterator[LlamaRouter]:
    """A router with a model in each state; the test fails if a probe loaded or woke one."""
    async with LlamaRouter(**{f"is-{status}": status for status in LISTED}) as server:
        yield server
        assert server.loaded_by == []


async def look(http: aiohttp.ClientSession, url: str, model: str, props: Props | None = None) -> Probe:
    return await probe(http, url, BackendType.LLAMA_CPP, timeout_s=10.0, model=model, props=props)


@pytest.mark.parametrize(
    ("status", "residence"),
    [
        ("unloaded", Residence.UNLOADED),
        ("downloading", Residence.LOADING),
        ("loading", Residence.LOADING),
        ("loaded", Residence.RESIDENT),
        ("sleeping", Residence.SLEEPING),
    ],
)
async def test_a_models_residence_is_what_the_router_says_of_it(
    router: LlamaRouter, http: aiohttp.ClientSession, status: str, residence: Residence
) -> None:
    first = await look(http, router.url, f"is-{status}")
    again = await look(http, router.url, f"is-{status}", first.props)

    assert [(seen.residence, seen.error) for seen in (first, again)] == [(residence, None)] * 2
    assert again.upstream_name == f"is-{status}"
    assert router.models[f"is-{status}"] == status


async def test_a_loaded_models_slots_context_and_use_are_its_own_childs(
    router: LlamaRouter, http: aiohttp.ClientSession
) -> None:
    idle = await look(http, router.url, "is-loaded")
    router.running = 2
    busy = await look(http, router.url, "is-loaded", idle.props)

    assert (idle.slots, idle.context_tokens, idle.running, idle.kv_use) == (3, 2048, 0, 0.0)
    assert (busy.slots, busy.context_tokens, busy.running, busy.kv_use) == (3, 2048, 2, 0.25)


async def test_every_question_about_a_model_names_it_and_forbids_loading(
    router: LlamaRouter, http: aiohttp.ClientSession
) -> None:
    router.running = 1
    props = None
    for _ in range(3):
        props = (await look(http, router.url, "is-loaded", props)).props

    about = [path for path in router.asked if not path.startswith(("/health", "/models"))]
    assert about[0] == "/props"  # how a router is recognised, once
    assert all(path.endswith("?model=is-loaded&autoload=false") for path in about[1:])
    assert {path.partition("?")[0] for path in about[1:]} == {"/metrics", "/props", "/slots"}


async def test_a_model_that_goes_while_it_is_looked_at_is_unloaded_and_stays_so(
    router: LlamaRouter, http: aiohttp.ClientSession
) -> None:
    props = (await look(http, router.url, "is-loaded")).props
    router.goes_after_listing = True

    seen = await look(http, router.url, "is-loaded", props)

    assert (seen.residence, seen.slots) == (Residence.UNLOADED, None)
    assert seen.error is not None
    assert "not loaded" in seen.error


async def test_a_model_that_was_loaded_anew_is_asked_for_its_slots_again(
    router: LlamaRouter, http: aiohttp.ClientSession
) -> None:
    props = (await look(http, router.url, "is-loaded")).props
    router.models["is-loaded"] = "unloaded"
    gone = await look(http, router.url, "is-loaded", props)
    router.models["is-loaded"] = "loaded"
    asked = len(router.asked)
    back = await look(http, router.url, "is-loaded", gone.props)

    assert (gone.slots, back.slots) == (None, 3)
    assert "/props?model=is-loaded&autoload=false" in router.asked[asked:]


async def test_a_child_that_failed_to_start_is_failed_with_its_exit_code(
    router: LlamaRouter, http: aiohttp.ClientSession
) -> None:
    router.failed["is-unloaded"] = 1
    seen = await look(http, router.url, "is-unloaded")
    assert (seen.residence, seen.error) == (
        Residence.FAILED,
        "its process under the router failed (exit code 1)",
    )


async def test_a_model_that_the_router_does_not_have_is_failed_and_the_list_is_said(
    router: LlamaRouter, http: aiohttp.ClientSession
) -> None:
    seen = await look(http, router.url, "elsewhere")
    assert seen.residence is Residence.FAILED
    assert seen.error is not None
    assert "upstream_name" in seen.error
    assert "is-loaded" in seen.error


async def test_a_name_with_slashes_and_ampersands_is_asked_for_as_it_is(http: aiohttp.ClientSession) -> None:
    name = "org/a&autoload=true+b:Q4_K_M"
    async with LlamaRouter(**{name: "loaded"}) as router:
        seen = await look(http, router.url, name)
        assert router.loaded_by == []
    assert (seen.residence, seen.slots, seen.error) == (Residence.RESIDENT, 3, None)


async def test_an_unknown_status_is_failed_and_said(http: aiohttp.ClientSession) -> None:
    async with LlamaRouter(odd="meditating") as router:
        seen = await look(http, router.url, "odd")
    assert seen.residence is Residence.FAILED
    assert seen.error is not None
    assert "meditating" in seen.error


async def test_a_server_that_took_a_routers_place_is_recognised_anew(http: aiohttp.ClientSession) -> None:
    """``/models`` of a server with one model has no status: what was known of the router is dropped."""
    router = Props(slots=None, context_tokens=None, upstream_name="tiny", router=True)
    async with faulty_server(answer("200 OK", b'{"data": [{"id": "tiny"}]}')) as server:
        seen = await look(http, server.url, "tiny", router)
    assert (seen.residence, seen.props) == (Residence.FAILED, None)
