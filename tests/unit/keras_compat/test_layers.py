"""These fail when a Keras release changes what `keras_compat/layers.py` relies on."""

import keras
import numpy as np

from distrib.keras_compat import layers


def test_layers_within_layers_and_their_variables() -> None:
    norm = keras.layers.BatchNormalization()
    inner = keras.Sequential([keras.layers.Dense(2), norm, keras.layers.Dropout(0.5)])
    model = keras.Sequential([keras.Input((3,)), inner, keras.layers.Dense(1)])
    norm.trainable = False
    found = layers.layers_of(model)
    assert norm in found
    assert model in found
    assert [v.name for v in layers.own_weights(norm)] == ["gamma", "beta"]
    assert [v.name for v in layers.own_statistics(norm)] == ["moving_mean", "moving_variance"]
    seeds = [seed for layer in found for seed in layers.own_seed_generators(layer)]
    assert [type(seed) for seed in seeds] == [keras.random.SeedGenerator]


def test_the_generator_of_keras_random() -> None:
    keras.utils.set_random_seed(7)
    generator = layers.global_seed_generator(create=True)
    assert layers.global_seed_generator(create=False) is generator
    state = generator.state.numpy()
    first = np.asarray(keras.random.normal((3,)))
    assert (generator.state.numpy() != state).any()
    generator.state.assign(state)
    np.testing.assert_array_equal(np.asarray(keras.random.normal((3,))), first)


def test_a_process_that_draws_nothing_has_no_generator() -> None:
    keras.utils.clear_session()
    assert layers.global_seed_generator(create=False) is None
