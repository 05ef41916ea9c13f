"""Which GPUs a caller means by ``gpu=``: a full id, or an index on whatever host."""

from __future__ import annotations

from collections.abc import Iterable

from services.api.problems import UNKNOWN_GPU, Problem

_NAME_SHOWN = 100


def gpus_named(name: str, known: Iterable[str]) -> set[str]:
    """The ids meant by ``host/index`` or by an index; raises ``Problem`` (404) with the list for none."""
    ids = set(known)
    meant = {gpu for gpu in ids if name in (gpu, gpu.rpartition("/")[2])}
    if not meant:
        listed = ", ".join(sorted(ids, key=place)) or "none was sampled yet"
        raise Problem(
            UNKNOWN_GPU,
            f"gpu: no {name[:_NAME_SHOWN]!r}; known: {listed}",
            field="gpu",
            known=sorted(ids, key=place),
        )
    return meant


def place(gpu: str) -> tuple[str, int, str]:
    """Sorts ids by host and number: 10 comes after 2."""
    host, _, index = gpu.rpartition("/")
    return host, int(index) if index.isdecimal() else 0, index
