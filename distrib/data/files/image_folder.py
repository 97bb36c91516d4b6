"""`ImageFolderSource`: a folder of images, whose sub-folders are the classes, as Keras reads it.

Files, labels, split and pixels are those of `keras.utils.image_dataset_from_directory`, whose
dataset can neither be resumed nor shared between ranks.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np

from distrib.data.files.ranges import FileRanges
from distrib.data.files.source import FileSource
from distrib.errors import ConfigurationError
from distrib.storage.find_files import FoundFile, find_tree

FORMATS = (".bmp", ".gif", ".jpeg", ".jpg", ".png")
_CHANNELS = {"grayscale": 1, "rgb": 3, "rgba": 4}
_LABEL_MODES = ("int", "categorical", "binary", None)


class ImageFolderSource(FileSource):
    """The images of a folder with a sub-folder for each class, on the local disk or in a store.

    An example is `(image, label)`: the image decoded and resized, float32 of shape
    `(height, width, channels)`, values 0 to 255; the label the number of the class. All as
    `keras.utils.image_dataset_from_directory` gives them, also which files are in a `subset`.

    Args:
        directory: Local path or fsspec URL.
        label_mode: `"int"` for int32 numbers, `"categorical"` for one-hot float32 vectors,
            `"binary"` for float32 0 or 1 of shape `(1,)`, or `None` for images without labels; then
            sub-folders do not matter. Defaults to `"int"`.
        class_names: Names of the sub-folders in the order of the labels. Defaults to `None`: all,
            sorted.
        color_mode: `"grayscale"`, `"rgb"` or `"rgba"`. Defaults to `"rgb"`.
        image_size: Height and width in pixels. Defaults to `(256, 256)`. `None` keeps uint8 images
            of their own sizes, for a `map` that crops or resizes.
        interpolation: Of `tf.image.resize`. Defaults to `"bilinear"`.
        crop_to_aspect_ratio: Whether to crop rather than distort. Defaults to `False`.
        pad_to_aspect_ratio: Whether to pad rather than distort. Defaults to `False`.
        validation_split: Fraction of the images to set apart. Defaults to `None`.
        subset: `"training"` or `"validation"`; needs `validation_split` and `seed`. Defaults to
            `None`: all images.
        seed: Of the split. Defaults to `None`.
        storage_options: Passed to fsspec's file system. Defaults to `None`.

    Attributes:
        class_names: In the order of their labels; `None` without labels.
        file_paths: Paths or URLs of the images.

    Raises:
        ConfigurationError: If there is no image, the folder cannot be listed, or an argument is
            wrong. An image that does not decode raises `ValueError` when it is read.

    Example:

    ```python
    from distrib.data import ImageFolderSource

    split = {"validation_split": 0.2, "seed": 1, "image_size": (224, 224)}
    source = ImageFolderSource("gs://bucket/flowers", subset="training", **split)
    train = cluster.dataset(source, batch_size=128, shuffle=True, seed=7)
    ```
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        label_mode: str | None = "int",
        class_names: Sequence[str] | None = None,
        color_mode: str = "rgb",
        image_size: tuple[int, int] | None = (256, 256),
        interpolation: str = "bilinear",
        crop_to_aspect_ratio: bool = False,
        pad_to_aspect_ratio: bool = False,
        validation_split: float | None = None,
        subset: str | None = None,
        seed: int | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        _check_choice("label_mode", label_mode, _LABEL_MODES)
        _check_choice("color_mode", color_mode, tuple(_CHANNELS))
        if crop_to_aspect_ratio and pad_to_aspect_ratio:
            raise ConfigurationError(
                "`crop_to_aspect_ratio` and `pad_to_aspect_ratio` exclude each other."
            )
        location, found = find_tree(directory, "directory", storage_options)
        images = {path: found[path] for path in found if path.lower().endswith(FORMATS)}
        if not images:
            raise ConfigurationError(
                f"`directory={str(directory)!r}` has no images ({', '.join(FORMATS)})."
            )
        self.class_names = None
        if label_mode is not None:
            self.class_names = _class_names(location.url, found, class_names)
        chosen = _subset(_sorted(images, self.class_names), validation_split, subset, seed)
        if label_mode == "binary" and len(self.class_names or ()) != 2:
            raise ConfigurationError(
                f"`label_mode='binary'` needs two classes, but there are {self.class_names}."
            )
        files = [images[path] for path, _ in chosen]
        # Each is read as a whole, so another size shows by itself.
        super().__init__(FileRanges(files, check_interval=math.inf), [1] * len(files))
        self._labels = np.array([label for _, label in chosen], np.int32)
        self._label_mode = label_mode
        self._channels = _CHANNELS[color_mode]
        self._image_size = image_size
        self._interpolation = interpolation
        self._crop, self._pad = crop_to_aspect_ratio, pad_to_aspect_ratio

    @property
    def file_paths(self) -> list[str]:
        """Paths or URLs of the images, in their order."""
        return [str(file) for file in self._files]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return the images at `indices`, with their labels; see `FileSource`."""
        numbers = [file for file, _ in self._places(indices)]  # A file is an example.
        contents = self._ranges.read([(i, 0, self._files[i].size) for i in numbers])
        import tensorflow as tf  # Worker processes import this module without it.

        # Decoding belongs to the CPU, also on a machine whose GPU trains.
        with tf.device("CPU:0"):
            images = [self._decode(*pair) for pair in zip(contents, numbers, strict=True)]
        if self._label_mode is None:
            return images
        return [(image, self._label(i)) for image, i in zip(images, numbers, strict=True)]

    def checksum(self) -> int:
        """Return the checksum of the files, which covers the labels as well; see `FileSource`."""
        labels = np.array([super().checksum(), *self._labels.tolist()], "<i8")
        return int(google_crc32c.value(labels.tobytes()))

    def _decode(self, content: bytes, index: int) -> Any:
        import keras
        import tensorflow as tf

        try:
            image = tf.io.decode_image(content, self._channels, expand_animations=False)
        except tf.errors.InvalidArgumentError as error:
            # Without the name of the operation before it, and of Python's after it.
            reason = re.sub(r"^{{.*?}} | \[Op:.*$", "", str(error.message))
            raise ValueError(f"{self._files[index]} does not decode: {reason}") from error
        if self._image_size is None:
            return image.numpy()
        if self._crop:
            return np.asarray(
                keras.preprocessing.image.smart_resize(
                    image, self._image_size, self._interpolation, data_format="channels_last"
                )
            )
        resize = tf.image.resize_with_pad if self._pad else _resize
        return resize(image, *self._image_size, method=self._interpolation).numpy()

    def _label(self, index: int) -> Any:
        label = self._labels[index]
        if self._label_mode == "binary":
            return np.array([label], np.float32)
        if self._label_mode == "categorical":
            return np.eye(len(self.class_names or ()), dtype=np.float32)[label]
        return label


def _resize(image: Any, height: int, width: int, method: str) -> Any:
    import tensorflow as tf

    return tf.image.resize(image, (height, width), method=method)


def _class_names(url: str, found: dict[str, FoundFile], given: Sequence[str] | None) -> list[str]:
    folders = sorted({path.split("/")[0] for path in found if "/" in path and path[0] != "."})
    if not folders:
        raise ConfigurationError(
            f"`directory={url!r}` has no sub-folders, which name the classes; pass "
            "`label_mode=None` for images without labels."
        )
    if given is None:
        return folders
    unknown = [name for name in given if name not in folders]
    if unknown:
        raise ConfigurationError(
            f"`class_names`: {url} has no sub-folder {unknown[0]!r}; it has {', '.join(folders)}."
        )
    return list(given)


def _sorted(
    images: dict[str, FoundFile], class_names: Sequence[str] | None
) -> list[tuple[str, int]]:
    """Return paths with labels in Keras's order: by class, then by folder, then by name."""
    paths = sorted(images, key=lambda path: path.rpartition("/")[::2])
    if class_names is None:
        return [(path, 0) for path in paths]
    by_class: dict[str, list[str]] = {name: [] for name in class_names}
    for path in paths:
        folder, slash, _ = path.partition("/")
        if slash and folder in by_class:
            by_class[folder].append(path)
    return [(path, i) for i, name in enumerate(class_names) for path in by_class[name]]


def _subset(
    images: list[tuple[str, int]],
    validation_split: float | None,
    subset: str | None,
    seed: int | None,
) -> list[tuple[str, int]]:
    """Return the images of a subset, as Keras chooses them with `shuffle=True`."""
    if validation_split is None and subset is None:
        return images
    _check_choice("subset", subset, ("training", "validation"))
    if validation_split is None or not 0 < validation_split < 1:
        raise ConfigurationError(
            f"`validation_split={validation_split}` must be between 0 and 1, and goes with "
            "`subset`."
        )
    if seed is None:
        raise ConfigurationError("`subset` needs a `seed`, the same for both subsets.")
    shuffled = [*images]
    np.random.RandomState(seed).shuffle(shuffled)
    number = len(images) - int(validation_split * len(images))
    part = shuffled[:number] if subset == "training" else shuffled[number:]
    if not part:
        raise ConfigurationError(f"`subset={subset!r}` of {len(images)} images is empty.")
    return part


def _check_choice(argument: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ConfigurationError(
            f"`{argument}={value!r}` must be one of {', '.join(map(repr, choices))}."
        )
