from collections import Counter

import numpy as np
import pytest

from distrib.data.permutation import hash_of, permute


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 999, 65_537])
def test_numbers_are_permuted(n):
    shuffled = permute(np.arange(n), n, hash_of(7, n))
    assert sorted(shuffled.tolist()) == list(range(n))
    assert n < 16 or shuffled.tolist() != permute(np.arange(n), n, hash_of(8, n)).tolist()


def test_each_number_may_have_a_permutation_of_its_own():
    index, length, key = np.array([4, 4, 99]), np.array([5, 7, 100]), hash_of([1, 2, 3])
    assert permute(index, length, key).tolist() == [
        int(permute(index[i : i + 1], length[i], key[i])[0]) for i in range(3)
    ]


def test_all_permutations_are_about_as_frequent():
    counts = Counter(tuple(permute(np.arange(4), 4, hash_of(1, k))) for k in range(2400))
    assert len(counts) == 24
    assert 60 < min(counts.values()) <= max(counts.values()) < 140


@pytest.mark.parametrize("n", [10**9, 2**33 + 1, 2**48])
def test_large_permutations_are_uniform(n):
    index = np.arange(n - 100_000, n)
    shuffled = permute(index, n, hash_of(3))
    assert len(np.unique(shuffled)) == 100_000
    assert 0 <= shuffled.min() <= shuffled.max() < n
    for bins in ((shuffled / n * 64).astype(int), shuffled % 64):
        counts = np.bincount(bins, minlength=64)
        assert 30 < ((counts - 100_000 / 64) ** 2 / (100_000 / 64)).sum() < 110
