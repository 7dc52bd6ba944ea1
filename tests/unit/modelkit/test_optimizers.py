"""Optimizer and learning rate come from the request, then the compile configuration, then the defaults."""

from __future__ import annotations

from squeezeflow.modelkit.compile_config import CompileConfig
from squeezeflow.modelkit.optimizers import choose_optimizer
from squeezeflow.v1 import technique_pb2


def test_without_any_word_it_is_adam_at_a_thousandth() -> None:
    choice = choose_optimizer(technique_pb2.FineTune(), CompileConfig())
    assert (choice.name, choice.learning_rate) == ("adam", 1e-3)
    assert choice.note == "optimizer adam (default), learning_rate 0.001 (default)"


def test_the_compile_configuration_is_taken_where_the_request_is_silent() -> None:
    compiled = CompileConfig(optimizer="sgd", learning_rate=0.05)
    choice = choose_optimizer(technique_pb2.FineTune(), compiled)
    assert (choice.name, choice.learning_rate) == ("sgd", 0.05)
    choice = choose_optimizer(technique_pb2.FineTune(learning_rate=0.01), compiled)
    assert (choice.name, choice.learning_rate) == ("sgd", 0.01)


def test_the_learning_rate_of_another_optimizer_is_not_taken() -> None:
    compiled = CompileConfig(optimizer="sgd", learning_rate=0.5)
    choice = choose_optimizer(technique_pb2.FineTune(optimizer="adam"), compiled)
    assert (choice.name, choice.learning_rate) == ("adam", 1e-3)


def test_an_optimizer_that_is_not_offered_gives_way_to_adam() -> None:
    choice = choose_optimizer(technique_pb2.FineTune(), CompileConfig(optimizer="lion", learning_rate=0.5))
    assert (choice.name, choice.learning_rate) == ("adam", 1e-3)
