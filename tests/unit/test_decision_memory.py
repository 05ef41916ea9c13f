"""Memory figures of one GPU: effective use with and without vLLM pools, what is available, what is large."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.decision.memory import available_mb, effective_utilization, is_large
from tests.unit.strategies import PROPERTY

GB = 1024.0


@pytest.mark.parametrize(
    ("total_gb", "used_gb", "pools_gb", "share"),
    [
        (24.0, 12.06, (), 0.5025),  # the specification's status example
        (24.0, 0.0, (), 0.0),
        (24.0, 24.0, (), 1.0),
        (24.0, 22.0, (21.6,), 0.4 / 2.4),  # an idle vLLM card is not under pressure
        (24.0, 23.7, (21.6,), 2.1 / 2.4),
        (24.0, 20.0, (10.0, 6.0), 4.0 / 8.0),
        (24.0, 23.9, (23.8,), 0.1 / 0.5),  # at least 0.5 GB of shared memory is assumed
        (24.0, 20.0, (21.6,), 0.0),  # a pool declared larger than what is in use
        (24.0, 25.0, (), 1.0),
    ],
)
def test_effective_use_leaves_vllm_pools_out(
    total_gb: float, used_gb: float, pools_gb: tuple[float, ...], share: float
) -> None:
    pools = [gb * GB for gb in pools_gb]
    result = effective_utilization(total_mb=total_gb * GB, used_mb=used_gb * GB, pools_mb=pools)
    assert result == pytest.approx(share)


@pytest.mark.parametrize(
    ("total_mb", "used_mb", "pools_mb"),
    [
        (None, 100.0, []),
        (100.0, None, []),
        (100.0, 50.0, [None]),
        (100.0, 50.0, [10.0, None]),
        (0.0, 0.0, []),
        (float("nan"), 1.0, []),
    ],
)
def test_a_missing_figure_makes_the_use_unknown_not_zero(
    total_mb: float | None, used_mb: float | None, pools_mb: list[float | None]
) -> None:
    assert effective_utilization(total_mb=total_mb, used_mb=used_mb, pools_mb=pools_mb) is None


@PROPERTY
@given(total=st.floats(), used=st.floats(), pools=st.lists(st.none() | st.floats(), max_size=3))
def test_effective_use_is_a_share_or_unknown(total: float, used: float, pools: list[float | None]) -> None:
    share = effective_utilization(total_mb=total, used_mb=used, pools_mb=pools)
    assert share is None or 0.0 <= share <= 1.0


@pytest.mark.parametrize(
    ("used_gb", "committed_gb", "foreign_gb", "available_gb"),
    [
        (12.06, 0.0, 0.0, 8.94),  # 24 - 12.06 - 3 in reserve
        (12.0, 10.0, 5.0, 6.0),  # a load under way counts before NVML shows it
        (23.0, 0.0, 0.0, 0.0),  # never negative
    ],
)
def test_available_memory_keeps_the_reserve(
    used_gb: float, committed_gb: float, foreign_gb: float, available_gb: float
) -> None:
    result = available_mb(
        total_mb=24 * GB,
        used_mb=used_gb * GB,
        reserve_mb=3 * GB,
        committed_mb=committed_gb * GB,
        foreign_mb=foreign_gb * GB,
    )
    assert result == pytest.approx(available_gb * GB)


def test_available_memory_is_unknown_without_a_reading() -> None:
    assert available_mb(total_mb=24 * GB, used_mb=None, reserve_mb=0.0) is None
    assert available_mb(total_mb=None, used_mb=1.0, reserve_mb=0.0) is None


@pytest.mark.parametrize(("vram_gb", "large"), [(15.0, False), (15.1, True), (None, False)])
def test_large_begins_above_fifteen_gb(vram_gb: float | None, large: bool) -> None:
    assert is_large(vram_gb) is large
