"""Readings through the real nvidia-ml-py, from a fake driver whose answers a file holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.fake_nvml import GB, NvmlReader, build, card, require_compiler, unloadable
from tests.kit.stopwatch import Stopwatch
from tests.kit.waiting import wait_until

GPU_IS_LOST, DRIVER_NOT_LOADED, VERSION_MISMATCH, NOT_SUPPORTED, NO_PERMISSION, UNKNOWN = 15, 9, 18, 3, 4, 999
FUNCTION_NOT_FOUND = 13


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake library in ``new`` and ``old``, and one that can't be loaded in ``none``."""
    require_compiler()
    directory = tmp_path_factory.mktemp("nvml")
    build(directory / "new")
    build(directory / "old", old_driver=True)
    unloadable(directory / "none")
    return directory


@pytest.fixture(scope="session")
def process(libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NvmlReader]:
    with NvmlReader(libraries / "new", tmp_path_factory.mktemp("cards") / "state") as reader:
        yield reader


@pytest.fixture
def nvml(process: NvmlReader) -> NvmlReader:
    """A source that has seen nothing yet, on a driver with all calls."""
    process.set(card(0))
    process.fresh()
    return process


def test_every_card_is_read_with_all_that_it_tells(nvml: NvmlReader) -> None:
    nvml.set({"count": 2}, card(0), card(1, name="NVIDIA GeForce RTX 3060", mem_total=12 * GB, temp=83))

    first, second = nvml.read()

    assert first == {
        "index": 0,
        "uuid": "GPU-fake-0",
        "name": "NVIDIA GeForce RTX 3090",
        "memory_total_mb": 24576.0,
        "memory_free_mb": 16384.0,
        "memory_used_mb": 8192.0,
        "gpu_utilization_percent": 37.0,
        "temperature_c": 61,
        "power_draw_w": 182.5,
        "power_limit_w": 350.0,
        "fan_percent": 45,
        "clocks_event_reasons": 0,
        "thermal_slowdown": False,
        "power_capped": False,
        "processes": [],
        "unread": [],
    }
    assert (second["index"], second["name"], second["temperature_c"]) == (1, "NVIDIA GeForce RTX 3060", 83)
    assert second["memory_total_mb"] == 12288.0


def test_what_the_driver_reserves_counts_as_used(nvml: NvmlReader) -> None:
    nvml.set(card(0, mem_used=8 * GB, mem_reserved=GB // 2))
    assert nvml.read()[0]["memory_used_mb"] == 8704.0


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, UNKNOWN])
def test_a_call_that_fails_leaves_its_own_reading_unknown_and_no_other(nvml: NvmlReader, code: int) -> None:
    nvml.set(card(0), {"gpu0.err.nvmlDeviceGetFanSpeed": code, "gpu0.err.nvmlDeviceGetPowerUsage": code})

    reading = nvml.read()[0]

    assert (reading["fan_percent"], reading["power_draw_w"]) == (None, None)
    assert (reading["power_limit_w"], reading["temperature_c"]) == (350.0, 61)


def test_a_card_that_tells_nothing_is_unknown_not_zero(nvml: NvmlReader) -> None:
    nvml.set({"count": 1})
    reading = nvml.read()[0]
    assert reading.pop("index") == 0
    assert {why for _, why in reading.pop("unread")} == {"not_supported"}
    assert {name: value for name, value in reading.items() if value is not None} == {}


@pytest.mark.parametrize(
    ("reasons", "slowdown", "capped"),
    [
        (0x0, False, False),
        (0x1, False, False),
        (0x4, False, True),
        (0x8, True, False),
        (0x20, True, False),
        (0x40, True, False),
        (0x80, False, True),
        (0x44, True, True),
        (0x400, False, False),
    ],
)
def test_reasons_of_heat_and_of_power_are_told_apart_and_others_ignored(
    nvml: NvmlReader, reasons: int, slowdown: bool, capped: bool
) -> None:
    nvml.set(card(0, reasons=reasons))
    reading = nvml.read()[0]
    assert reading["clocks_event_reasons"] == reasons
    assert (reading["thermal_slowdown"], reading["power_capped"]) == (slowdown, capped)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (NOT_SUPPORTED, "not_supported"),
        (NO_PERMISSION, "no_permission"),
        (FUNCTION_NOT_FOUND, "not_in_driver"),
        (UNKNOWN, "nvml_error_999"),
    ],
)
def test_why_a_reading_is_missing_is_told(nvml: NvmlReader, code: int, why: str) -> None:
    nvml.fresh()
    nvml.set(card(0), {"err.nvmlDeviceGetFanSpeed": code, "err.nvmlDeviceGetMemoryInfo": code})
    for _ in range(2):
        assert nvml.read()[0]["unread"] == [["memory", why], ["fan_percent", why]]


@pytest.mark.parametrize("code", [NOT_SUPPORTED, FUNCTION_NOT_FOUND, UNKNOWN])
def test_where_the_newer_temperature_call_fails_the_older_one_is_asked(nvml: NvmlReader, code: int) -> None:
    nvml.set(card(0), {"err.nvmlDeviceGetTemperatureV": code})
    for _ in range(2):
        reading = nvml.read()[0]
        assert (reading["temperature_c"], reading["unread"]) == (61, [])


def test_processes_of_both_lists_are_one_and_a_size_of_zero_is_unknown(nvml: NvmlReader) -> None:
    nvml.set(card(0, compute=f"42:{2 * GB},43:-,44:0", graphics=f"42:{2 * GB},50:{GB}"))

    listed = [(process["pid"], process["memory_mb"]) for process in nvml.read()[0]["processes"]]

    assert listed == [(42, 2048.0), (43, None), (44, None), (50, 1024.0)]


def test_a_size_that_only_one_of_the_lists_knows_is_known(nvml: NvmlReader) -> None:
    nvml.set(card(0, compute=f"42:-,43:{GB}", graphics=f"42:{2 * GB},43:-"))
    listed = [(process["pid"], process["memory_mb"]) for process in nvml.read()[0]["processes"]]
    assert listed == [(42, 2048.0), (43, 1024.0)]


def test_without_the_compute_list_the_processes_are_unknown_not_none(nvml: NvmlReader) -> None:
    nvml.set(
        card(0, graphics=f"42:{GB}"), {"gpu0.err.nvmlDeviceGetComputeRunningProcesses_v3": NO_PERMISSION}
    )
    reading = nvml.read()[0]
    assert (reading["processes"], reading["unread"]) == (None, [["processes", "no_permission"]])


def test_a_driver_without_the_newer_calls_still_tells_temperature_and_reasons(
    libraries: Path, tmp_path: Path
) -> None:
    with NvmlReader(libraries / "old", tmp_path / "state") as old:
        old.set(card(0, reasons=0x20))
        for _ in range(2):
            reading = old.read()[0]
            assert (reading["temperature_c"], reading["thermal_slowdown"]) == (61, True)


def test_a_lost_card_is_left_out_until_it_is_back(nvml: NvmlReader) -> None:
    both = ({"count": 2}, card(0), card(1))
    nvml.set(*both)
    assert [reading["index"] for reading in nvml.read()] == [0, 1]

    nvml.set(*both, {"gpu0.err.*": GPU_IS_LOST})
    assert [reading["index"] for reading in nvml.read()] == [1]

    nvml.set(*both)
    assert [reading["index"] for reading in nvml.read()] == [0, 1]


async def test_a_card_keeps_its_index_when_nvml_counts_anew(nvml: NvmlReader) -> None:
    """GPU 0 falls off the bus, and the library opened anew lists the other card first."""
    both = ({"count": 2}, card(0), card(1))
    nvml.set(*both)
    nvml.read()
    nvml.set({"count": 1, "generation": 1}, card(0, uuid="GPU-fake-1"))
    assert [(one["index"], one["uuid"]) for one in nvml.read()] == [(1, "GPU-fake-1")]

    nvml.set({"generation": 1}, *both)
    await wait_until(
        lambda: (
            [(one["index"], one["uuid"]) for one in nvml.read()] == [(0, "GPU-fake-0"), (1, "GPU-fake-1")]
        ),
        "the library is opened anew and finds the card again",
    )


def test_a_card_that_is_lost_from_the_start_is_no_error(nvml: NvmlReader) -> None:
    nvml.set({"count": 2}, card(0), card(1), {"gpu0.err.nvmlDeviceGetHandleByIndex_v2": GPU_IS_LOST})
    assert [reading["index"] for reading in nvml.read()] == [1]


def test_all_cards_lost_is_told_from_no_driver(nvml: NvmlReader) -> None:
    nvml.set(card(0), {"gpu0.err.*": GPU_IS_LOST})
    assert nvml.cause() == "lost"


def test_a_reloaded_driver_is_opened_again_within_the_same_reading(nvml: NvmlReader) -> None:
    nvml.set(card(0))
    nvml.read()
    nvml.set(card(0, temp=70), {"generation": 1})
    assert nvml.read()[0]["temperature_c"] == 70


@pytest.mark.parametrize("code", [DRIVER_NOT_LOADED, VERSION_MISMATCH])
def test_a_driver_that_goes_away_is_no_driver_and_comes_back(nvml: NvmlReader, code: int) -> None:
    nvml.set(card(0))
    nvml.read()

    nvml.set(card(0), {"err.*": code})
    assert [nvml.cause(), nvml.cause()] == ["no_driver", "no_driver"]

    nvml.set(card(0))
    assert nvml.read()[0]["temperature_c"] == 61


def test_a_missing_library_is_told_from_a_driver_that_does_not_run(libraries: Path, tmp_path: Path) -> None:
    with NvmlReader(libraries / "none", tmp_path / "state") as without:
        assert without.cause() == "library_missing"
        assert without.choice("auto") is None
        assert without.choice("nvml") == "nvml"


def test_auto_takes_nvml_where_a_driver_is_installed_even_if_it_does_not_run_yet(nvml: NvmlReader) -> None:
    nvml.set(card(0))
    assert nvml.choice("auto") == "nvml"
    nvml.set(card(0), {"err.nvmlInitWithFlags": DRIVER_NOT_LOADED})
    assert nvml.choice("auto") == "nvml"


async def test_a_hanging_driver_delays_nobody_and_is_read_again_once_it_answers(nvml: NvmlReader) -> None:
    """What the driver says at last is of long ago, so the first reading that counts is a new one."""
    nvml.fresh(patience_s=0.1)
    nvml.set(card(0), {"delay_ms": 300})
    assert nvml.cause() == "not_answering"
    nvml.set(card(0, temp=70))

    answer = await wait_until(
        lambda: found if "readings" in (found := nvml.try_read()) else None, "the driver answers again"
    )
    assert answer["readings"][0]["temperature_c"] == 70


def test_a_hanging_driver_is_never_called_a_second_time(nvml: NvmlReader) -> None:
    nvml.fresh(patience_s=0.02)
    nvml.set(card(0), {"delay_ms": 5000})
    assert [nvml.cause() for _ in range(4)] == ["not_answering"] * 4
    assert nvml.calls_under_way() == 1


def test_a_process_ends_at_once_although_its_driver_hangs(libraries: Path, tmp_path: Path) -> None:
    with NvmlReader(libraries / "new", tmp_path / "state") as stuck:
        stuck.fresh(patience_s=0.1)
        stuck.set(card(0), {"delay_ms": 10_000})
        assert stuck.cause() == "not_answering"
        with Stopwatch() as watch:
            assert stuck.quit(timeout_s=8.0) == 0
            assert watch.elapsed_s < 2
