"""All services for every end-to-end test, started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests import models
from tests.servers.stack import Stack

from squeezeflow.client import Client

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="session")
def client(stack: Stack) -> Client:
    return stack.client()


@pytest.fixture(scope="session")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled tf_keras CNN for 28×28 images."""
    return models.tf_keras_file(tmp_path_factory.mktemp("cnn"), compiled=True)


@pytest.fixture(scope="session")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 train and 400 test images of Fashion-MNIST."""
    path = tmp_path_factory.mktemp("data") / "few.npz"
    with np.load(DATA / "fashion_mnist.npz") as source:
        np.savez(
            path,
            x_train=source["x_train"][:600],
            y_train=source["y_train"][:600],
            x_test=source["x_test"][:400],
            y_test=source["y_test"][:400],
        )
    return path
