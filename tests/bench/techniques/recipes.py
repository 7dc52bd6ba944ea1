"""The recipes that `make bench-techniques` runs: all shipped ones, and variants that show one parameter each."""

from __future__ import annotations

from google.protobuf import json_format

from squeezeflow.core import recipes
from squeezeflow.v1 import jobs_pb2

# Techniques as proto JSON; the names say what differs from the shipped recipe.
VARIANTS: dict[str, list[dict[str, object]]] = {
    "int8-per-tensor": [{"quantize": {"mode": "MODE_INT8", "per_channel": False}}],
    "float16-sparse": [{"prune": {}}, {"quantize": {"mode": "MODE_FLOAT16", "sparse_encoding": True}}],
    "int4-block-32": [{"quantize": {"mode": "MODE_INT4", "block_size": 32}}],
    "int4-weight-only": [{"quantize": {"mode": "MODE_INT4", "weight_only": True}}],
    "int8-ai-edge": [{"quantize": {"mode": "MODE_INT8", "backend": "BACKEND_AI_EDGE"}}],
    "prune-50": [{"prune": {"sparsity": 0.5}}, {"convert": {}}],
    "prune-constant": [{"prune": {"schedule": "SCHEDULE_CONSTANT"}}, {"convert": {}}],
    "prune-2-of-4": [{"prune": {"m_by_n": {}}}, {"convert": {}}],
    "prune-one-shot-50": [{"prune": {"sparsity": 0.5, "one_shot": True}}, {"convert": {}}],
    "cluster-32": [{"cluster": {"number_of_clusters": 32}}, {"convert": {}}],
    "cluster-linear": [{"cluster": {"initialization": "INITIALIZATION_LINEAR"}}, {"convert": {}}],
    "cluster-density": [{"cluster": {"initialization": "INITIALIZATION_DENSITY_BASED"}}, {"convert": {}}],
    "cluster-random": [{"cluster": {"initialization": "INITIALIZATION_RANDOM"}}, {"convert": {}}],
    "cluster-per-channel": [{"cluster": {"per_channel": True}}, {"convert": {}}],
    "cluster-one-shot-32": [{"cluster": {"number_of_clusters": 32, "one_shot": True}}, {"convert": {}}],
    # What the collaborative recipes are held against: training with fake quantization that preserves nothing.
    "prune-qat": [{"prune": {}}, {"train_quantized": {}}],
    "cluster-qat": [{"cluster": {}}, {"train_quantized": {}}],
}


def all_recipes() -> list[jobs_pb2.Recipe]:
    """Gives every recipe once; float32 is always measured."""
    shipped = [recipes.named(name) for name in recipes.RECIPES if name != recipes.BASELINE]
    variants = [
        json_format.ParseDict({"name": name, "techniques": techniques}, jobs_pb2.Recipe())
        for name, techniques in VARIANTS.items()
    ]
    return [*shipped, *variants]
