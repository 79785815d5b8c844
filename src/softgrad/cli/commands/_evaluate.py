"""``softgrad evaluate``: a model measured on labelled rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from softgrad.cli.commands._apply import Applied, rows_of
from softgrad.cli.features._labels import own_classes
from softgrad.cli.features._load import Choice, Part, targets_of
from softgrad.cli.model import _archive, _measure
from softgrad.cli.tables._arrays import with_labels
from softgrad.cli.tables._sources import opened
from softgrad.cli.terminal import _show
from softgrad.cli.terminal._messages import UserError, plain_warnings
from softgrad.cli.terminal._progress import Stages

__all__ = ["evaluate"]


def evaluate(
    model_path: Path,
    data: str,
    *,
    target: str | None,
    weight: str | None,
    json: bool,
    seed: int,
    delimiter: str | None,
    data_format: str | None,
) -> None:
    """Run the command."""
    model = _archive.load(model_path)
    facts = model.description
    soft = () if target else tuple(map(str, facts.get("soft") or ()))
    target = target or (None if soft else str(facts.get("target")))
    classes = np.asarray(model.classes)
    with opened(data, delimiter=delimiter, data_format=data_format) as source, Stages() as stages, plain_warnings():
        source, target = with_labels(source, target)
        rows = rows_of(model, source, keep=1 << 28)
        if not model.ingredients:
            labels, soft_labels, weights = rows.labels, None, None
        else:
            if soft and [str(name) for name in model.classes] != list(soft):
                raise UserError(f"{model_path}: is a damaged model file: its soft labels are not its classes")
            choice = Choice(target=target, target_proba=soft, weight=weight)
            rows.require([*([target] if target else soft), *([weight] if weight else [])])
            labels, soft_labels, weights = targets_of(rows, choice, classes)
        part = Part(source.text, None, labels, soft_labels, weights, np.arange(len(labels)), rows)
        own = own_classes(part, classes)
        applied = Applied(model, rows, [])
        logits = np.concatenate(
            [some for _, some in applied.batches(lambda done: stages.tick("predict", done, len(labels)))]
        )
        applied.warn()
        stages.begin("measure")
        found = _measure.evaluate(source.text, logits, own, soft_labels, weights, classes, seed)
    if json:
        _show.print_json({"model": str(model_path), "data": source.text} | _show.evaluation_json(found, model.classes))
        return
    _show.evaluation_tables(_show.console(), [found], model.classes)
