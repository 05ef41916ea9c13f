"""Ids that nobody can guess: each another one, also in a child of the process."""

from __future__ import annotations

import os

from shared.random_ids import random_id


def test_no_id_comes_twice() -> None:
    ids = [random_id() for _ in range(1000)]

    assert len(set(ids)) == len(ids)
    assert {len(one) for one in ids} == {32}
    assert int("".join(ids), 16) > 0


def test_a_child_of_the_process_has_ids_of_its_own() -> None:
    random_id()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, random_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with open(reading) as pipe:
        assert pipe.read() != random_id()
