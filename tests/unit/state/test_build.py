import keras
import pytest

from distrib.errors import ConfigurationError
from distrib.state.build import build_without_data


def test_without_data_the_model_must_be_built() -> None:
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("adam", "mse")
    with pytest.raises(ConfigurationError, match="it is not built yet"):
        build_without_data(model)
    model = make()
    build_without_data(model)
    assert model.optimizer.built
