"""Fine-tuning, common to every trained technique: what to fit with, and the fit.

`resolve` decides everything before any work (the request, then the model's compile configuration, then what the output
and its labels say) and tells all of it; `fit` then only does it. A technique wraps a model between the two and adds its
callbacks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import tensorflow as tf
import tf_keras

from squeezeflow.core.datasets import BoundData
from squeezeflow.core.datasets.targets import VALUES
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import Checkpoint, Report
from squeezeflow.modelkit import batches, checkpoints, layers
from squeezeflow.modelkit.checkpoints import CheckpointWriter
from squeezeflow.modelkit.early_stopping import EarlyStopping, Watch, watch_rows
from squeezeflow.modelkit.epoch_seeds import epoch_seeds
from squeezeflow.modelkit.fit_progress import FitProgress
from squeezeflow.modelkit.fit_variables import FitVariables, build_figures
from squeezeflow.modelkit.losses import LabelledOutput, OutputLoss, choose, op_activation
from squeezeflow.modelkit.optimizers import choose_optimizer, make_optimizer
from squeezeflow.modelkit.pointwise import without_strides
from squeezeflow.modelkit.source import Source
from squeezeflow.v1 import technique_pb2

DEFAULT_EPOCHS, DEFAULT_BATCH_SIZE = 2, 32
# Rows that are looked at in one piece.
CHUNK_ROWS = 1 << 16


@dataclass(frozen=True)
class Training:
    """Everything that a fit needs, decided.

    Attributes:
        losses: one an output that has labels.
        samples: number of train samples that are fitted.
        whole_batches: the model takes batches of this size only; each epoch leaves out what does not fill one.
        notes: where each of these is from, for a person.
        patience, min_delta: of early stopping; patience 0: none.
    """

    losses: tuple[OutputLoss, ...]
    optimizer: str
    learning_rate: float
    epochs: int
    batch_size: int
    seed: int
    samples: int
    whole_batches: bool
    notes: tuple[str, ...]
    patience: int = 0
    min_delta: float = 0.0

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch; the last one may be shorter, unless only whole ones are taken."""
        return self.samples // self.batch_size if self.whole_batches else math.ceil(self.samples / self.batch_size)

    @property
    def steps(self) -> int:
        """Batches of the whole fit."""
        return self.steps_per_epoch * self.epochs


def resolve(request: technique_pb2.FineTune, source: Source, bound: BoundData | None) -> Training:
    """Decides how a tf_keras source is fitted on the train arrays.

    Errors: DATA_MISSING without train samples or labels, INVALID_PARAMETER naming the field that cannot be inferred or
    does not fit the labels.
    """
    samples = bound.count("train") if bound else 0
    if not bound or not samples or not bound.has_targets("train"):
        missing = "y_train" if samples else "x_train and y_train"
        raise SqueezeflowError(
            "DATA_MISSING", f"fine-tuning needs {missing}: add to the dataset", metadata={"split": "train"}
        )
    for split in ("train", "validation") if request.patience else ("train",):
        bound.require_one_size(split, "fine-tuning takes batches of one size, store this split in one")
    losses = choose(_labelled_outputs(source, bound), request, source.compile_config)
    optimizer = choose_optimizer(request, source.compile_config)
    epochs = request.epochs or DEFAULT_EPOCHS
    watched = watch_rows(request, bound, least=_declared_batch(source) or 1) if request.patience else None
    samples -= watched.held_out if watched else 0
    fixed = _fixed_batch(source, request, samples)
    batch_size = fixed or request.batch_size or DEFAULT_BATCH_SIZE
    notes = [optimizer.note]
    if fixed:
        notes.append(f"the model takes batches of {fixed} only: each epoch leaves out {samples % fixed} samples")
    unlabelled = [output.name for output in source.contract.outputs if output.name not in {c.output for c in losses}]
    if unlabelled:
        notes.append(f"outputs without labels are not fitted: {', '.join(unlabelled)}")
    told = {"epochs": epochs, "batch_size": batch_size, "seed": request.seed}
    defaults = [field for field in told if not request.HasField(field)]
    settings = ", ".join(f"{field} {value}{' (default)' if field in defaults else ''}" for field, value in told.items())
    notes.append(f"fine-tuning on {samples} train samples: {settings}")
    return Training(
        losses,
        optimizer.name,
        optimizer.learning_rate,
        epochs,
        batch_size,
        request.seed,
        samples,
        fixed is not None,
        (*(choice.describe() for choice in losses), *notes, *([watched.note] if watched else [])),
        request.patience,
        request.min_delta,
    )


def seed_everything(training: Training) -> None:
    """Makes what follows in this process depend on the seed alone: initialisers, dropout, the order of reductions.

    Op determinism costs nothing measurable on CPU.
    """
    tf_keras.utils.set_random_seed(training.seed)
    tf.config.experimental.enable_op_determinism()


def fit(
    model: tf_keras.Model,
    training: Training,
    source: Source,
    bound: BoundData,
    report: Report,
    *,
    callbacks: Sequence[tf_keras.callbacks.Callback] = (),
    span: tuple[float, float] = (0.0, 1.0),
    checkpoint: Checkpoint | None = None,
    stoppable_after_step: int = 0,
) -> list[str]:
    """Compiles and fits a model, and gives notes about how it went.

    Args:
        model: the source's model, or one with the same inputs and outputs that a technique made of it.
        callbacks: the technique's own, called before the report.
        span: the part of the step's fraction that the fit covers.
        checkpoint: where the state of the fit is kept, and read where an earlier run of the same action left one.
        stoppable_after_step: early stopping counts only epochs that begin after this training step; before it the
            technique is not done yet with the model (a sparsity that still grows).

    The result depends on the arguments other than `checkpoint` alone: a fit that goes on from a checkpoint, in another
    process too, gives the weights of one that was never interrupted, bit for bit. Checkpoints are of any batch, or of
    epoch ends only where the model holds state that cannot be kept, which is said when a fit goes on.

    Errors: NON_FINITE_OUTPUT naming the epoch, as soon as the loss is not finite.
    """
    keys = dict(zip([output.name for output in source.contract.outputs], batches.output_keys(model), strict=True))
    _compile(model, training, keys)
    # Before anything is traced: a train function that makes these variables is traced twice, a resumed one never would.
    model.optimizer.build(model.trainable_variables)
    build_figures(model, batches.first_labels(model, bound, source.contract, "train"))
    with without_strides(model), epoch_seeds(model, training.seed) as seeds:
        variables = FitVariables(model, seeds.generators)
        length = {"epochs": training.epochs, "steps": training.steps_per_epoch}
        state, notes = checkpoints.resume(checkpoint, variables, **length)
        done, batch = (state.epoch, state.batch) if state else (0, 0)
        stopping = None
        if training.patience:
            stopping = EarlyStopping(
                patience=training.patience,
                min_delta=training.min_delta,
                first_epoch=max(1, math.ceil(stoppable_after_step / training.steps_per_epoch)),
                watch=state.watch if state else Watch(),
            )
        train, validation = _batches(model, training, source, bound, first_epoch=done, first_batch=batch)
        progress = FitProgress(report, **length, span=span, names=_log_names(model, keys))
        writer = CheckpointWriter(checkpoint, variables, **length, stopping=stopping, state=state)
        first = training.epochs if state and state.ended else done
        with checkpoints.beginning_at(model, first, batch):
            model.fit(
                train,
                initial_epoch=first,
                epochs=training.epochs,
                steps_per_epoch=training.steps_per_epoch,
                validation_data=validation,
                verbose=0,
                callbacks=[seeds, *callbacks, progress, *([stopping] if stopping else []), writer],
            )
    epochs = len(writer.history["loss"])
    if stopping:
        notes.append(stopping.restore(model, epoch=epochs, epochs=training.epochs))
    figures = ", ".join(
        f"{progress.name_of(name)} {values[0]:.4g} → {values[-1]:.4g}" for name, values in writer.history.items()
    )
    return [f"training figures, first → last of {epochs} epochs: {figures}", *notes, *writer.notes(resumed=bool(state))]


def _batches(
    model: tf_keras.Model, training: Training, source: Source, bound: BoundData, *, first_epoch: int, first_batch: int
) -> tuple[tf.data.Dataset, tf.data.Dataset | None]:
    """Gives the batches to fit, and those to validate with."""
    batched = partial(
        batches.fit_batches,
        model,
        bound,
        source.contract,
        batch_size=training.batch_size,
        whole=training.whole_batches,
    )
    begin = {"first_epoch": first_epoch, "first_batch": first_batch}
    shuffled = partial(batched, split="train", shuffle_seed=training.seed, **begin)
    if training.patience:
        rows = bound.fit_rows(training.seed)
        return shuffled(rows=rows.train), batched(split=rows.validation_split, rows=rows.validation)
    validated = bound.has_targets("validation")
    if training.whole_batches and bound.count("validation") < training.batch_size:
        validated = False
    return shuffled(), batched(split="validation") if validated else None


def _compile(model: tf_keras.Model, training: Training, keys: dict[str, str]) -> None:
    optimizer = make_optimizer(training.optimizer, training.learning_rate)
    if len(keys) == 1 and not isinstance(model.output, dict):
        choice = training.losses[0]
        model.compile(optimizer, choice.keras_loss(), metrics=[choice.keras_metric()])
        return
    model.compile(
        optimizer,
        {keys[choice.output]: choice.keras_loss() for choice in training.losses},
        metrics={keys[choice.output]: [choice.keras_metric()] for choice in training.losses},
    )


def _fixed_batch(source: Source, request: technique_pb2.FineTune, samples: int) -> int | None:
    """Gives the batch that the model was built for; None where it is free.

    Errors: INVALID_PARAMETER where the request says another one, DATA_MISSING where there are fewer train samples.
    """
    fixed = _declared_batch(source)
    if fixed is None:
        return None
    if request.batch_size not in (0, fixed):
        message = (
            f"the model takes batches of {fixed}: leave out fine_tune.batch_size, or save it with a free batch axis"
        )
        raise SqueezeflowError("INVALID_PARAMETER", message, fields=[("params.fine_tune.batch_size", message)])
    if samples < fixed:
        raise SqueezeflowError(
            "DATA_MISSING",
            f"there are {samples} train samples and the model takes batches of {fixed}: add samples",
            metadata={"split": "train"},
        )
    return fixed


def _declared_batch(source: Source) -> int | None:
    return next((int(tensor.shape[0]) for tensor in source.keras.inputs if tensor.shape[0] is not None), None)


def _labelled_outputs(source: Source, bound: BoundData) -> list[LabelledOutput]:
    model, found = source.keras, []
    labelled = bound.targets("train", slice(0, 1))
    for index, output in enumerate(source.contract.outputs):
        kind = bound.target_kind(output.name)
        if output.name not in labelled or kind is None:
            continue
        last = layers.last_layer(model, index)
        units = 1 if len(output.shape) < 2 else (int(output.shape[-1]) if output.shape[-1] >= 0 else None)
        low, high, whole = _range(bound, output.name) if kind == VALUES else (0.0, 1.0, True)
        inside = low >= 0.0 and high <= 1.0
        activation = layers.activation(last) or op_activation(last)
        found.append(LabelledOutput(output.name, units, activation, kind, inside and whole, inside))
    return found


def _range(bound: BoundData, output: str) -> tuple[float, float, bool]:
    """Gives lowest and highest label of train, and whether all of them are whole numbers."""
    low, high, whole = math.inf, -math.inf, True
    for start in range(0, bound.count("train"), CHUNK_ROWS):
        values = bound.targets("train", slice(start, start + CHUNK_ROWS))[output]
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        whole = whole and bool(np.all(values == np.round(values)))
    return low, high, whole


def _log_names(model: tf_keras.Model, keys: dict[str, str]) -> dict[str, str]:
    """Maps the prefixes that Keras puts before figures of single outputs to contract names."""
    return {} if len(keys) == 1 else {f"{key}_": f"{name}_" for name, key in keys.items()}
