"""How far the batch loader reads ahead. What it reads is tested on a real store, in tests/contract/test_streams.py."""

import threading

import numpy as np

from steadfast_trainer.data.streams import BatchLoader


class CountedStream:
    """A stream that counts its reads, and says when the read of a given number is over."""

    size = 100

    def __init__(self):
        self.reads = 0
        self.changed = threading.Condition()

    def read_many(self, indices):
        with self.changed:
            self.reads += 1
            self.changed.notify_all()
        return np.zeros((len(indices), 5), dtype=np.int64)

    def wait_for_reads(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: self.reads >= count, timeout=10)


def test_a_loader_reads_ahead_but_not_without_bound():
    stream = CountedStream()
    loader = BatchLoader(stream, seed=1, rank=0, world_size=1, global_batch=2, start_step=0, ahead=3)
    stream.wait_for_reads(4)  # three wait in the queue, one in the thread's hand
    for _ in range(20):
        loader.next()
    stream.wait_for_reads(24)
    loader.close()
    assert stream.reads == 24
