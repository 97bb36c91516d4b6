"""Permutations of many numbers of which single ones are computed, in NumPy.

`permute` is a Feistel cipher: it maps pairs of digits to pairs of digits, one to one, whatever its
round function is. Numbers below n are pairs of digits to a base of at least the root of n; a result
of n or more is mapped again until it is smaller, which keeps the map one to one. The result depends
on nothing but integer arithmetic, so it is the same with every version of NumPy.

`order.py` has the operation of TensorFlow for its permutation, which runs in a graph. This one is
for orders that Python computes, with another length and key for each number.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distrib.data.arrays import Array

_ROUNDS = 8
_STEP = np.uint64(0x9E3779B97F4A7C15)


def hash_of(*numbers: Any) -> Any:
    """Return a hash of integers, or of arrays of them elementwise, as uint64."""
    state: Any = np.zeros(1, np.uint64)
    for number in numbers:
        # The finalizer of SplitMix64 (Steele, Lea and Flood 2014).
        state = (state ^ np.asarray(number).astype(np.uint64)) + _STEP
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def permute(index: Array, length: Any, key: Any) -> Array:
    """Return where permutations of `range(length)` put the numbers in `index`.

    Args:
        index: Numbers to map, 0 to `length - 1`; int64, shape `[n]`.
        length: Size of the permutation, 1 to 2**48, one for all or for each; int64.
        key: Selects the permutation, one for all or for each; uint64.

    Returns:
        int64 array of shape `[n]`.
    """
    length, key = np.broadcast_to(length, index.shape), np.broadcast_to(key, index.shape)
    result = np.array(index, np.int64)
    outside = np.arange(len(result))
    while len(outside):
        result[outside] = _encipher(result[outside], length[outside], key[outside])
        outside = outside[result[outside] >= length[outside]]
    return result


def _encipher(number: Array, length: Array, key: Array) -> Array:
    base = np.ceil(np.sqrt(length)).astype(np.uint64)
    left, right = np.divmod(number.astype(np.uint64), base)
    for round_number in range(_ROUNDS):
        left, right = right, (left + hash_of(key + np.uint64(round_number), right)) % base
    return (left * base + right).astype(np.int64)
