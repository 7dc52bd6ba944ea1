"""Writes a tf_keras model as a `.keras` archive: the same model always gives the same bytes.

tf_keras puts the time of day into the archive. Artifacts are named by their content, so a step that runs again would
look like a new model to everything behind it.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path

import tf_keras

from squeezeflow.modelkit.compile_config import CompileConfig
from squeezeflow.modelkit.losses import CROSSENTROPIES, REGRESSIONS, keras_class
from squeezeflow.modelkit.optimizers import OPTIMIZERS, make_optimizer

# The earliest time that a zip archive can hold.
EPOCH = (1980, 1, 1, 0, 0, 0)


def write_keras(model: tf_keras.Model, path: Path, compiled: CompileConfig) -> None:
    """Writes a model with the loss and optimizer that its source was compiled with, without optimizer state.

    Args:
        model: tf_keras; it is compiled by this where `compiled` has a loss.
        path: ends in `.keras`.
        compiled: what a later step infers its fine-tuning from; left out where it has no known loss.
    """
    if compiled.loss in CROSSENTROPIES | REGRESSIONS:
        loss = keras_class(compiled.loss)
        options = {"from_logits": bool(compiled.from_logits)} if compiled.loss in CROSSENTROPIES else {}
        name = compiled.optimizer if compiled.optimizer in OPTIMIZERS else "adam"
        rate = compiled.learning_rate
        model.compile(name if rate is None else make_optimizer(name, rate), loss(**options))
    draft = path.with_name(f"draft-{path.name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(str(draft))
    with zipfile.ZipFile(draft) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            info = zipfile.ZipInfo(name, EPOCH)
            with source.open(name) as reader, target.open(info, "w") as writer:
                if name == "metadata.json":
                    metadata = json.load(reader) | {"date_saved": "1980-01-01@00:00:00"}
                    writer.write(json.dumps(metadata).encode())
                    continue
                while chunk := reader.read(1 << 20):
                    writer.write(chunk)
    draft.unlink()
