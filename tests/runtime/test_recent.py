"""The values that were used last, shared by threads."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from bksdm.runtime.recent import Recent


def test_the_value_that_was_not_used_for_the_longest_goes():
    recent = Recent(2)
    recent.keep("a", 1)
    recent.keep("b", 2)
    assert recent.get("a") == 1
    recent.keep("c", 3)
    assert [recent.get(key) for key in "abc"] == [1, None, 3]


@pytest.fixture
def switching():
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_share_it(switching):
    recent = Recent(3)

    def work(thread):
        for number in range(2000):
            key = (thread + number) % 7
            found = recent.get(key)
            assert found in (None, key * 10)
            recent.keep(key, key * 10)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert sum(recent.get(key) is not None for key in range(7)) == 3
