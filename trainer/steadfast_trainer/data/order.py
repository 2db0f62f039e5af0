"""The order of training: which sample stands at which position, as a pure function of (seed, size, position).

Every epoch is its own pseudo-random permutation, computed instead of stored: a balanced Feistel network over the next
power of four, walked until it lands inside the stream. Ranks only slice the global order, so a resumed run, or one of
another world size, reads the same samples in the same order. Frozen: changing a constant reorders every run.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8
_WORD = (1 << 64) - 1
# The finalizer of splitmix64 (Steele, Lea and Flood, 2014): every input bit flips each output bit half of the time.
_MULTIPLY_1 = 0xBF58476D1CE4E5B9
_MULTIPLY_2 = 0x94D049BB133111EB


def sample_at(position: int, *, seed: int, size: int) -> int:
    """Index of the sample at a global position, in a stream of `size` samples.

    Raises:
        ValueError: the position is negative or the stream is empty.
    """
    _check(position, size)
    epoch, index = divmod(position, size)
    keys, half = _round_keys(seed, epoch), _half_bits(size)
    index = _permute(index, keys=keys, half=half)
    while index >= size:
        index = _permute(index, keys=keys, half=half)
    return index


def samples_at(positions: NDArray[np.int64] | range, *, seed: int, size: int) -> NDArray[np.int64]:
    """`sample_at` for many positions at once, in their order.

    Raises:
        ValueError: a position is negative or the stream is empty.
    """
    positions_B = np.asarray(positions, dtype=np.int64)
    if positions_B.size == 0:
        return positions_B
    _check(int(positions_B.min()), size)
    epochs_B, indices_B = np.divmod(positions_B, size)
    samples_B = np.empty_like(positions_B)
    for epoch in np.unique(epochs_B):
        here_B = epochs_B == epoch
        samples_B[here_B] = _permuted(indices_B[here_B], keys=_round_keys(seed, int(epoch)), size=size)
    return samples_B


def positions_of(step: int, *, rank: int, world_size: int, global_batch: int) -> range:
    """Global positions that a rank reads in a step (counted from 0): its contiguous slice of the global batch.

    Raises:
        ValueError: the global batch does not divide evenly, or there is no such rank or step.
    """
    if step < 0 or not 0 <= rank < world_size:
        raise ValueError(f"no step {step} of rank {rank} in a world of {world_size}")
    if global_batch < 1 or global_batch % world_size:
        raise ValueError(f"a global batch of {global_batch} sequences does not divide by {world_size} ranks")
    share = global_batch // world_size
    first = step * global_batch + rank * share
    return range(first, first + share)


def _check(position: int, size: int) -> None:
    if size < 1:
        raise ValueError("a stream without samples has no order")
    if position < 0:
        raise ValueError(f"no sample at position {position}")


def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    digest = hashlib.sha512(f"steadfast order 1: seed {seed} epoch {epoch}".encode()).digest()
    return struct.unpack(f"<{_ROUNDS}Q", digest)


def _half_bits(size: int) -> int:
    """Half of the network's width: its domain is the smallest power of four that holds `size`, at most 4 x size."""
    return ((size - 1).bit_length() + 1) // 2


def _permute(index: int, *, keys: tuple[int, ...], half: int) -> int:
    mask = (1 << half) - 1
    left, right = index >> half, index & mask
    for key in keys:
        left, right = right, left ^ (_mix((right + key) & _WORD) & mask)
    return left << half | right


def _mix(word: int) -> int:
    word = (word ^ word >> 30) * _MULTIPLY_1 & _WORD
    word = (word ^ word >> 27) * _MULTIPLY_2 & _WORD
    return word ^ word >> 31


def _permuted(indices_B: NDArray[np.int64], *, keys: tuple[int, ...], size: int) -> NDArray[np.int64]:
    half = _half_bits(size)
    walked_B = indices_B.astype(np.uint64)
    outside_B = np.ones(walked_B.shape, dtype=bool)
    while outside_B.any():
        walked_B[outside_B] = _permute_words(walked_B[outside_B], keys=keys, half=half)
        outside_B = walked_B >= np.uint64(size)
    return walked_B.astype(np.int64)


def _permute_words(words_B: NDArray[np.uint64], *, keys: tuple[int, ...], half: int) -> NDArray[np.uint64]:
    """`_permute` on unsigned 64-bit arrays, whose sums and products wrap as the masks above do."""
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left_B, right_B = words_B >> shift, words_B & mask
    for key in keys:
        mixed_B = right_B + np.uint64(key)
        mixed_B = (mixed_B ^ mixed_B >> np.uint64(30)) * np.uint64(_MULTIPLY_1)
        mixed_B = (mixed_B ^ mixed_B >> np.uint64(27)) * np.uint64(_MULTIPLY_2)
        mixed_B = mixed_B ^ mixed_B >> np.uint64(31)
        left_B, right_B = right_B, left_B ^ (mixed_B & mask)
    return left_B << shift | right_B
