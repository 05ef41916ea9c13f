"""Which GPU a model is on, which vLLM pools are on a GPU, and how changes of level are told."""

from __future__ import annotations

from typing import Any

import pytest

from services.monitor.host import HostView, Pool
from services.monitor.ownership import Server
from services.monitor.sample import level_change, number, worse
from shared.decision.levels import LevelState
from shared.gpu.source import GpuProcess, GpuReading
from shared.registry import Registration
from shared.states import BackendType, Pressure, Residence, Thermal

ONE = (GpuReading(0, uuid="GPU-a"),)
TWO = (*ONE, GpuReading(1, uuid="GPU-b"))


def model(**changes: Any) -> Registration:
    return Registration(**{"name": "m", **({"port": 8080} if "url" not in changes else {}), **changes})


def view(*readings: GpuReading) -> HostView:
    host = HostView("host", "backends.example")
    host.saw_gpus(readings)
    return host


@pytest.mark.parametrize(
    ("entry", "on_one", "on_two"),
    [
        (model(), "host/0", None),
        (model(gpu=0), "host/0", "host/0"),
        (model(gpu="0"), "host/0", "host/0"),
        (model(gpu=1), None, "host/1"),
        (model(gpu="GPU-b"), None, "host/1"),
        (model(gpu="gpu-B"), None, "host/1"),
        (model(gpu="GPU-c"), None, None),
        (model(url="http://127.0.0.1:9000"), "host/0", None),
        (model(url="http://[::1]:9000/v1"), "host/0", None),
        (model(url="http://localhost:9000"), "host/0", None),
        (model(url="http://HOST:9000"), "host/0", None),
        (model(url="http://backends.example:9000"), "host/0", None),
        (model(url="http://10.0.0.2:8000"), None, None),
        (model(url="http://elsewhere:8000"), None, None),
        (model(url="http://10.0.0.2:8000", host="host"), "host/0", None),
        (model(url="http://10.0.0.2:8000", gpu=0), "host/0", "host/0"),
    ],
)
def test_a_model_is_on_the_gpu_it_names_or_on_the_only_one_of_its_host(
    entry: Registration, on_one: str | None, on_two: str | None
) -> None:
    expected = tuple(() if gpu is None else (gpu,) for gpu in (on_one, on_two))
    assert (view(*ONE).gpus_of(entry), view(*TWO).gpus_of(entry)) == expected


def test_nothing_is_said_of_a_models_gpu_before_the_gpus_were_read() -> None:
    host = HostView("host", "127.0.0.1")
    assert not host.gpus_known
    host.saw_gpus(())
    assert (host.gpus_known, host.gpus_of(model())) == (True, ())


def test_a_gpu_that_is_missing_from_a_later_reading_keeps_its_models() -> None:
    host = view(*TWO)
    host.saw_gpus(ONE)
    assert host.gpus_of(model(gpu="GPU-b")) == ("host/1",)
    assert host.gpus_of(model()) == ()


@pytest.mark.parametrize(("host", "owned"), [(None, True), ("host", True), ("other", False)])
def test_a_host_probes_its_own_models_and_those_of_no_host(host: str | None, owned: bool) -> None:
    assert view().owns(model(host=host)) is owned


POOL = model(name="pool", backend=BackendType.VLLM, vram_gb=20.0)


@pytest.mark.parametrize(
    ("seen", "pools"),
    [
        ((), (Pool("pool", None, probed=False),)),
        ((Residence.RESIDENT,), (Pool("pool", 20480.0, probed=True),)),
        ((Residence.RESIDENT, Residence.FAILED), (Pool("pool", 20480.0, probed=True),)),
        ((Residence.RESIDENT, Residence.SLEEPING), ()),
        ((Residence.RESIDENT, Residence.UNLOADED), ()),
        ((Residence.SLEEPING, Residence.FAILED), ()),
        ((Residence.FAILED,), ()),
    ],
)
def test_an_awake_vllm_holds_its_pool_also_while_it_does_not_answer(
    seen: tuple[Residence, ...], pools: tuple[Pool, ...]
) -> None:
    host = view(*ONE)
    host.saw_models([POOL, model(name="other", vram_gb=3.0)])
    for residence in seen:
        host.saw_residence("pool", residence)
    host.saw_residence("other", Residence.RESIDENT)
    assert host.pools("host/0") == pools


def test_a_pool_counts_on_its_own_gpu_and_as_long_as_it_is_registered() -> None:
    host = view(*TWO)
    host.saw_models([POOL.model_copy(update={"gpu": 1})])
    host.saw_residence("pool", Residence.RESIDENT)
    assert (host.pools("host/0"), len(host.pools("host/1"))) == ((), 1)
    host.saw_models([])
    assert host.pools("host/1") == ()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        (24576.0, "24576"),
        (0.0, "0"),
        (-0.0, "0"),
        (-0.0000001, "0"),
        (0.1234567, "0.123457"),
        (7, "7"),
    ],
)
def test_numbers_are_written_short_and_exact_to_six_decimals(value: float | None, text: str | None) -> None:
    assert number(value) == text


LOW = LevelState(Pressure.LOW, thermal=Thermal.NORMAL)
FULL = LevelState(Pressure.CRITICAL, full=True, thermal=Thermal.NORMAL)
CRITICAL = LevelState(Pressure.CRITICAL, thermal=Thermal.NORMAL)
HOT = LevelState(Pressure.LOW, thermal=Thermal.THROTTLING)
READING = GpuReading(0, memory_total_mb=24576.0, temperature_c=83.4, thermal_slowdown=True)


@pytest.mark.parametrize(
    ("old", "new", "pools_mb", "line"),
    [
        (LOW, LOW, 0.0, None),
        (LOW, FULL, 0.0, "GPU g memory pressure low -> full (97.0 % of 24.0 GB used), thermal normal"),
        (
            FULL,
            CRITICAL,
            0.0,
            "GPU g memory pressure full -> critical (97.0 % of 24.0 GB used), thermal normal",
        ),
        (LOW, HOT, 0.0, "GPU g memory pressure low, thermal normal -> throttling (83 C, thermal slowdown)"),
        (
            LOW,
            CRITICAL,
            20480.0,
            "GPU g memory pressure low -> critical (97.0 % of 4.0 GB used outside vLLM pools), "
            "thermal normal",
        ),
    ],
)
def test_a_change_of_level_is_one_line_with_its_figures(
    old: LevelState, new: LevelState, pools_mb: float, line: str | None
) -> None:
    assert level_change("g", old, new, READING, 0.97, pools_mb) == line


@pytest.mark.parametrize(
    ("old", "new", "warns"),
    [
        (LOW, CRITICAL, True),
        (CRITICAL, FULL, True),
        (LOW, HOT, True),
        (FULL, CRITICAL, False),
        (CRITICAL, LOW, False),
        (HOT, LOW, False),
    ],
)
def test_only_what_takes_something_from_requests_is_a_warning(
    old: LevelState, new: LevelState, warns: bool
) -> None:
    assert worse(old, new) is warns


def on_gpus(*lists: list[tuple[int, float | None]] | None) -> tuple[GpuReading, ...]:
    """One reading for each list of processes; None: they can't be listed."""
    return tuple(
        GpuReading(
            index,
            processes=None if listed is None else tuple(GpuProcess(pid, size) for pid, size in listed),
        )
        for index, listed in enumerate(lists)
    )


def seeing(
    entries: list[Registration], owners: dict[int, set[int]], *lists: list[tuple[int, float | None]] | None
) -> HostView:
    """A host whose processes belong to the servers on these ports."""
    host = view(*on_gpus(*lists))
    host.saw_models(entries)
    host.saw_owners(
        {server: frozenset(owners[server.port]) for server in host.servers if server.port in owners}
    )
    return host


A = model(name="a", port=8080)
B = model(name="b", port=8081)


def test_with_several_gpus_a_model_is_where_its_processes_are_and_its_memory_is_theirs() -> None:
    host = seeing([A, B], {8080: {10, 11}, 8081: {20}}, [(10, 500.0), (11, 1500.0), (99, 7.0)], [(20, 64.0)])
    assert (host.gpus_of(A), host.memory_mb(A)) == (("host/0",), 2000.0)
    assert (host.gpus_of(B), host.memory_mb(B)) == (("host/1",), 64.0)


def test_a_model_over_two_gpus_is_on_both() -> None:
    host = seeing([A], {8080: {10, 11}}, [(10, 500.0)], [(10, 400.0), (11, 100.0)])
    assert (host.gpus_of(A), host.memory_mb(A)) == (("host/0", "host/1"), 1000.0)


def test_memory_that_the_driver_does_not_tell_is_unknown_though_the_place_is_known() -> None:
    host = seeing([A], {8080: {10, 11}}, [], [(10, 400.0), (11, None)])
    assert (host.gpus_of(A), host.memory_mb(A)) == (("host/1",), None)


def test_processes_of_nobody_place_nothing_and_weigh_nothing() -> None:
    host = seeing([A], {}, [(4711, 400.0)], [])
    assert (host.gpus_of(A), host.memory_mb(A)) == ((), None)


def test_a_model_whose_processes_can_no_longer_be_listed_stays_where_it_was() -> None:
    host = seeing([A], {8080: {10}}, [], [(10, 400.0)])
    host.saw_gpus(on_gpus([], None))
    host.saw_owners({})
    assert (host.gpus_of(A), host.memory_mb(A)) == (("host/1",), None)


def test_a_model_that_moves_is_where_it_went() -> None:
    host = seeing([A], {8080: {10}}, [(10, 400.0)], [])
    host.saw_gpus(on_gpus([], [(12, 400.0)]))
    host.saw_owners({Server(8080, vllm=False): frozenset({12})})
    assert host.gpus_of(A) == ("host/1",)


def test_what_models_of_one_router_hold_is_told_only_of_the_one_that_is_loaded() -> None:
    one, two = model(name="one", url="http://127.0.0.1:8080"), model(name="two", port=8080)
    host = seeing([one, two], {8080: {10}}, [(10, 400.0)])
    assert (host.memory_mb(one), host.memory_mb(two)) == (None, None)
    host.saw_residence("one", Residence.RESIDENT)
    host.saw_residence("two", Residence.UNLOADED)
    assert (host.memory_mb(one), host.memory_mb(two)) == (400.0, None)


def test_a_pool_is_what_it_is_measured_to_hold_before_what_is_declared() -> None:
    entry = POOL.model_copy(update={"port": 8000})
    host = seeing([entry], {8000: {10}}, [(10, 22_000.0)])
    host.saw_residence("pool", Residence.RESIDENT)
    assert host.pools("host/0") == (Pool("pool", 22_000.0, probed=True),)
    host.saw_gpus(on_gpus([(10, None)]))
    assert host.pools("host/0") == (Pool("pool", 20_480.0, probed=True),)


def test_a_vllm_that_loads_is_a_pool_already() -> None:
    entry = POOL.model_copy(update={"port": 8000})
    host = seeing([entry], {8000: {10}}, [(10, 9_000.0)])
    assert (host.loads(entry), host.loads(A)) == (True, False)
    host.saw_residence("pool", Residence.LOADING)
    assert host.pools("host/0") == (Pool("pool", 9_000.0, probed=True),)


def test_two_names_of_one_vllm_are_one_pool_and_two_gpus_share_what_is_declared() -> None:
    first, second = (POOL.model_copy(update={"name": name, "port": 8000}) for name in ("first", "second"))
    host = seeing([first, second], {8000: {10}}, [(10, None)], [(10, None)])
    for name in ("first", "second"):
        host.saw_residence(name, Residence.RESIDENT)
    assert [host.pools(gpu) for gpu in ("host/0", "host/1")] == [(Pool("first", 10_240.0, probed=True),)] * 2


def test_a_port_of_another_host_is_no_server_of_this_one() -> None:
    host = view(*ONE)
    host.saw_models([model(url="http://10.0.0.2:8000")])
    assert host.servers == frozenset()
