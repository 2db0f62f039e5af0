"""The order of training: a permutation per epoch, the same for every world size, and frozen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadfast_trainer.data.order import positions_of, sample_at, samples_at

SIZES = [1, 2, 3, 4, 5, 7, 16, 17, 31, 64, 65, 97, 127, 255, 256, 257, 1009]


@pytest.mark.parametrize("size", SIZES)
def test_every_epoch_reads_every_sample_once(size):
    for epoch in range(3):
        order = [sample_at(epoch * size + index, seed=17, size=size) for index in range(size)]
        assert sorted(order) == list(range(size))


@given(st.integers(1, 5000), st.integers(), st.integers(0, 10**6))
def test_any_epoch_of_any_size_and_seed_is_a_permutation(size, seed, epoch):
    order = samples_at(range(epoch * size, (epoch + 1) * size), seed=seed, size=size)
    assert np.array_equal(np.sort(order), np.arange(size))


@given(
    st.integers(1, 2**61),
    st.integers(0, 2**64),
    st.lists(st.integers(0, 2**62), max_size=20),
)
def test_many_positions_at_once_equal_one_at_a_time(size, seed, positions):
    together = samples_at(np.array(positions, dtype=np.int64), seed=seed, size=size)
    assert together.tolist() == [sample_at(position, seed=seed, size=size) for position in positions]


def test_a_batch_across_the_end_of_an_epoch_reads_both_orders():
    together = samples_at(range(95, 110), seed=1, size=100)
    assert together.tolist() == [sample_at(position, seed=1, size=100) for position in range(95, 110)]


@pytest.mark.parametrize(("seed", "epoch"), [(17, 1), (18, 0)], ids=["another epoch", "another seed"])
def test_epochs_and_seeds_have_their_own_orders(seed, epoch):
    first = samples_at(range(1000), seed=17, size=1000)
    other = samples_at(range(epoch * 1000, (epoch + 1) * 1000), seed=seed, size=1000)
    assert (first == other).sum() < 20


def test_the_order_looks_random():
    order = samples_at(range(10_000), seed=17, size=10_000)
    neighbours = np.corrcoef(order[:-1], order[1:])[0, 1]
    place = np.corrcoef(order, np.arange(10_000))[0, 1]
    assert abs(neighbours) < 0.04
    assert abs(place) < 0.04


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_another_world_size_sees_the_same_global_order(world_size):
    slices = [positions_of(5, rank=rank, world_size=world_size, global_batch=12) for rank in range(world_size)]
    assert [position for part in slices for position in part] == list(range(60, 72))


@pytest.mark.parametrize(
    ("step", "rank", "world_size", "global_batch", "message"),
    [
        (0, 0, 3, 32, "a global batch of 32 sequences does not divide by 3 ranks"),
        (0, 0, 1, 0, "a global batch of 0 sequences"),
        (0, 2, 2, 32, "no step 0 of rank 2 in a world of 2"),
        (-1, 0, 2, 32, "no step -1"),
    ],
)
def test_an_impossible_slice_is_refused(step, rank, world_size, global_batch, message):
    with pytest.raises(ValueError, match=message):
        positions_of(step, rank=rank, world_size=world_size, global_batch=global_batch)


def test_an_impossible_position_is_refused():
    with pytest.raises(ValueError, match="without samples"):
        sample_at(0, seed=1, size=0)
    with pytest.raises(ValueError, match="no sample at position -1"):
        sample_at(-1, seed=1, size=5)
    with pytest.raises(ValueError, match="no sample at position -3"):
        samples_at(np.array([1, -3]), seed=1, size=5)


def test_no_positions_are_no_samples():
    assert samples_at(range(0), seed=1, size=5).tolist() == []


# Frozen: a change here means that every resumed run would read other data than it would have.
def test_the_order_never_changes():
    first = [sample_at(position, seed=17, size=27_000) for position in range(16)]
    assert first[:8] == [25876, 13946, 11814, 13100, 18656, 7425, 1091, 10165]
    assert first[8:] == [10188, 6851, 8557, 9557, 7549, 26800, 15857, 958]
    far = [sample_at(10**15 + position, seed=0, size=10**12) for position in range(4)]
    assert far == [884931019154, 941473127093, 931204433049, 615437197991]
