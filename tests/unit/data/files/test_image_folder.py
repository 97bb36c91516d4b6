import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

from distrib.data import ImageFolderSource
from distrib.data.make_dataset import make_dataset
from distrib.errors import ConfigurationError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for seed, name in enumerate(["cats", "dogs", "ants"]):
        (folder / name / "deep").mkdir(parents=True)
        for number in range(4):
            rng = np.random.default_rng([seed, number])
            pixels = rng.integers(0, 256, (10 + number, 12, 3)).astype(np.uint8)
            path = folder / name / (f"{number}.png" if number < 3 else f"deep/{number}.JPG")
            keras.utils.save_img(path, pixels, scale=False)
        (folder / name / "notes.txt").touch()
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "9.png").write_bytes((folder / "cats" / "0.png").read_bytes())
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_mode": "categorical", "color_mode": "grayscale", "crop_to_aspect_ratio": True},
        {"label_mode": "binary", "class_names": ["dogs", "cats"], "pad_to_aspect_ratio": True},
        {"label_mode": None, "image_size": (4, 4), "interpolation": "nearest"},
    ],
)
def test_examples_are_those_of_keras(folder, options):
    options = {"image_size": (8, 9), **options}
    expected = keras.utils.image_dataset_from_directory(
        folder, batch_size=None, shuffle=False, verbose=False, **options
    )
    source = ImageFolderSource(folder, **options)
    assert source.file_paths == expected.file_paths
    assert source.class_names == expected.class_names
    examples = source.__getitems__(range(len(source)))
    for one, other in zip(expected, examples, strict=True):
        for a, b in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True):
            np.testing.assert_array_equal(a.numpy(), b, strict=True)


@pytest.mark.parametrize("subset", ["training", "validation"])
def test_subsets_are_those_of_keras(folder, subset):
    split = {"validation_split": 0.3, "subset": subset, "seed": 5}
    expected = keras.utils.image_dataset_from_directory(folder, verbose=False, **split)
    assert ImageFolderSource(folder, **split).file_paths == expected.file_paths


def test_a_dataset_takes_a_folder(folder):
    (batch,) = make_dataset(str(folder), 12)
    assert batch[0].shape == (12, 256, 256, 3)
    assert batch[1].numpy().tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_images_may_keep_their_sizes(folder):
    source = pickle.loads(pickle.dumps(ImageFolderSource(folder, image_size=None)))
    image, label = source[1]
    assert (image.shape, image.dtype, label) == ((11, 12, 3), np.uint8, 0)


def test_other_labels_are_other_data(folder):
    one = ImageFolderSource(folder, class_names=["cats", "dogs"])
    other = ImageFolderSource(folder, class_names=["dogs", "cats"])
    assert one.checksum() != other.checksum()
    assert one.checksum() == ImageFolderSource(folder, class_names=["cats", "dogs"]).checksum()


def test_an_image_that_does_not_decode_is_named(tmp_path):
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "bad.jpg").write_bytes(b"GIF?")
    with pytest.raises(ValueError, match=r"bad.jpg does not decode: Unknown image file format"):
        ImageFolderSource(tmp_path)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_mode": "one-hot"}, "`label_mode='one-hot'` must be one of 'int', "),
        ({"color_mode": "bgr"}, "`color_mode='bgr'` must be one of"),
        ({"class_names": ["cows"]}, "no sub-folder 'cows'; it has ants, cats, dogs"),
        ({"label_mode": "binary"}, "`label_mode='binary'` needs two classes"),
        ({"subset": "both"}, "`subset='both'` must be one of"),
        ({"validation_split": 0.2}, "`subset=None` must be one of"),
        ({"subset": "training", "seed": 1}, "`validation_split=None` must be between 0 and 1"),
        ({"subset": "training", "validation_split": 0.2}, "needs a `seed`"),
        ({"subset": "validation", "validation_split": 0.01, "seed": 1}, "is empty"),
        ({"crop_to_aspect_ratio": True, "pad_to_aspect_ratio": True}, "exclude each other"),
    ],
)
def test_wrong_arguments_are_refused(folder, options, message):
    with pytest.raises(ConfigurationError, match=message):
        ImageFolderSource(folder, **options)


def test_folders_that_hold_no_classes_are_refused(folder, tmp_path):
    with pytest.raises(ConfigurationError, match="no such folder, or it is empty"):
        ImageFolderSource(tmp_path / "none")
    with pytest.raises(ConfigurationError, match="has no sub-folders, which name the classes"):
        ImageFolderSource(folder / "cats" / "deep")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigurationError, match=r"has no images \(.bmp"):
        ImageFolderSource(tmp_path)
