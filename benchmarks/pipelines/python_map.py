"""A `map` in Python that holds the interpreter's lock, in 2 worker processes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from distrib.data.make_dataset import make_dataset
from pipelines.contenders import Contender, compare, load_grain

WORKERS = 2


def tokens(text: str) -> Any:
    """Return token numbers of a text, int64 of shape `[256]`; takes about 2 ms of Python."""
    words: dict[str, int] = {}
    row = [words.setdefault(text[i : i + 3], len(words)) for i in range(0, len(text) - 3)]
    return np.array(row[:256], np.int64)


def text(index: int) -> str:
    """Return a text of 12,000 letters."""
    return "".join(map(chr, np.random.default_rng(index).integers(97, 123, 12_000)))


class Texts:
    """Texts with random access."""

    def __init__(self, number: int) -> None:
        self.texts = [text(i) for i in range(number)]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> str:
        return self.texts[index]


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
    compare(f"{number} texts, `map` in Python, 2 workers", contenders, repeats, warm=True)
