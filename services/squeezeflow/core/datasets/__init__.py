"""Datasets: `.npz` files and folders of `.npy` arrays, bound to a model's contract by name. numpy only.

reading    what is in the file: names, dtypes, shapes, arrays on demand; nothing is unpickled
binding    which array is which input or target of which split, and all checks, once
conversion how stored values become the model's: the affine, lossless casts, a missing channel axis
targets    what the labels are: class ids, one-hot or values
parts      one array, or numbered ones of different sizes
bound      rows for fitting, calibration, evaluation and comparison
synthetic  inputs by dtype and shape where there is no data
"""

from squeezeflow.core.datasets.binding import Dataset, plain_inputs, shapes
from squeezeflow.core.datasets.bound import SPLITS, BoundData, FitRows
from squeezeflow.core.datasets.synthetic import synthetic_inputs

__all__ = ["SPLITS", "BoundData", "Dataset", "FitRows", "plain_inputs", "shapes", "synthetic_inputs"]
