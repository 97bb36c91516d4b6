import keras
import numpy as np

from distrib.state.variables import (
    optimizers_of,
    seed_of_replica,
    seeds_of,
    statistics_of,
    weights_of_gradients,
)


def make() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, name="dense"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dropout(0.5, name="dropout"),
        ]
    )


def test_frozen_weights_are_still_weights() -> None:
    model = make()
    before = weights_of_gradients(model)
    assert len(before) == 4
    model.trainable = False
    assert weights_of_gradients(model) == before


def test_statistics_are_those_of_layers_that_are_not_frozen() -> None:
    model = make()
    norm = model.get_layer("norm")
    statistics = statistics_of(model)
    assert {id(v) for v in statistics} == {id(norm.moving_mean), id(norm.moving_variance)}
    norm.trainable = False
    assert statistics_of(model) == []


def test_seeds() -> None:
    model = make()
    assert seeds_of(model) == {id(model.get_layer("dropout").seed_generator.state)}


def test_each_replica_draws_other_numbers_from_the_same_place() -> None:
    state = np.array([4_000_000_000, 17], np.uint32)
    seeds = [seed_of_replica(state, number) for number in range(20)]
    np.testing.assert_array_equal(seeds[0], state)
    assert len({int(seed) for seed, _ in seeds}) == 20
    assert {int(counter) for _, counter in seeds} == {17}
    np.testing.assert_array_equal(seed_of_replica(state, 3), seeds[3])


class Own(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.mine = keras.optimizers.SGD()

    def train_step(self, data: object) -> dict[str, float]:
        return {}


def test_the_optimizers_that_train_a_model() -> None:
    model = make()
    model.compile("adam", "mse")
    assert optimizers_of(model) == [model.optimizer]
    own = Own()
    own.compile("adam")
    assert optimizers_of(own).count(own.mine) == 1
