import pickle
import threading

import pytest

from distrib.data.files.shared_cache import SharedCache


def test_results_used_last_are_kept():
    cache = SharedCache(10, len)
    computed = []

    def get(key, size=4):
        def compute():
            computed.append(key)
            return "x" * size

        return cache.get(key, compute)

    for key in "abacab":
        get(key)
    assert computed == ["a", "b", "c", "b"]
    get("large", 20)
    get("large", 20)
    assert computed[4:] == ["large"]
    assert pickle.loads(pickle.dumps(cache)).get("large", str) == ""


def test_an_error_is_raised_and_not_kept():
    cache = SharedCache(10, len)
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: 1 / 0)
    assert cache.get("a", lambda: "b") == "b"


def test_threads_wait_for_the_one_that_computes():
    cache = SharedCache(10, len)
    entered, released, others = threading.Event(), threading.Event(), []

    def slow():
        entered.set()
        released.wait()
        return "slow"

    first = threading.Thread(target=cache.get, args=("a", slow))
    second = threading.Thread(target=lambda: others.append(cache.get("a", lambda: "other")))
    first.start()
    entered.wait()
    second.start()
    released.set()
    first.join()
    second.join()
    assert others == ["slow"]
