from __future__ import annotations

import pytest

from squeezeflow.cli.exits import UsageError
from squeezeflow.cli.numbers import number_list


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1/255", (1 / 255,)), ("0.5", (0.5,)), ("-0.5, 1/2,3", (-0.5, 0.5, 3.0)), ("", ()), ("1e-3", (0.001,))],
)
def test_numbers_are_fractions_decimals_and_lists(text, numbers):
    assert number_list("--scale", text) == numbers


@pytest.mark.parametrize("text", ["one", "1/0", "nan", "1,,2", "1/2/3", "inf"])
def test_what_is_no_number_is_refused_with_the_option_and_an_example(text):
    with pytest.raises(UsageError, match=r"--scale.*1/255"):
        number_list("--scale", text)
