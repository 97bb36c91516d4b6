"""A `map` in Python that holds the interpreter's lock, in 2 worker processes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from distrib.data.make_dataset import make_dataset
from pipelines.contenders import Contender, compare, load_grain
from pipelines.texts import Texts, tokens

WORKERS = 2


class TextBatches(keras.utils.PyDataset):
    """The same for Keras: batches of token numbers."""

    def __init__(self, texts: Texts, batch: int) -> None:
        super().__init__(workers=WORKERS, use_multiprocessing=True, max_queue_size=8)
        self.texts, self.batch = texts, batch

    def __len__(self) -> int:
        return len(self.texts) // self.batch

    def __getitem__(self, index: int) -> Any:
        rows = range(index * self.batch, (index + 1) * self.batch)
        return (np.stack([tokens(self.texts[i]) for i in rows]),)


def keras_batches(dataset: TextBatches) -> Any:
    """Return the batches as `fit` gets them."""
    from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

    adapter = PyDatasetAdapter(dataset, shuffle=True)
    adapter.on_epoch_begin()
    yield from adapter.get_tf_dataset().take(len(dataset))
    adapter.on_epoch_end()


def compare_python(number: int, batch: int, repeats: int) -> None:
    """Print the table."""
    texts = Texts(number)

    def ours(workers: int) -> Contender:
        dataset = make_dataset(
            texts, batch, shuffle=True, seed=1, map=tokens, num_workers=workers, drop_remainder=True
        )
        return Contender(f"distrib, num_workers={workers}", lambda: dataset, len)

    batches = TextBatches(texts, batch)
    contenders = [
        ours(0),
        ours(WORKERS),
        Contender("PyDataset, 2 workers, multiprocessing", lambda: keras_batches(batches)),
    ]
    if grain := load_grain():
        dataset = grain.MapDataset.source(texts).shuffle(seed=1).map(tokens)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=batch)
        examples = dataset.to_iter_dataset(options).batch(batch, drop_remainder=True)
        processes = examples.mp_prefetch(grain.MultiprocessingOptions(num_workers=WORKERS))
        contenders.append(Contender("grain, mp_prefetch, 2 workers", lambda: processes, len))
    compare(f"{number} texts, `map` in Python, 2 workers", contenders, repeats)
