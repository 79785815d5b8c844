"""``softgrad export``: a model as an ONNX file, tried against the model before it is there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from softgrad.cli.commands._apply import rows_of
from softgrad.cli.features._frame import frame
from softgrad.cli.model import _archive
from softgrad.cli.onnx._file import export as to_onnx
from softgrad.cli.onnx._file import require
from softgrad.cli.tables._output import check_output
from softgrad.cli.tables._sources import opened
from softgrad.cli.terminal import _show
from softgrad.cli.terminal._messages import UserError, shown
from softgrad.cli.terminal._progress import Stages

ROWS = 500  # given ones that are tried

__all__ = ["export"]


def export(
    model_path: Path, onnx: Path, *, data: str | None, json: bool, delimiter: str | None, data_format: str | None
) -> None:
    """Run the command."""
    require()
    check_output(onnx, (".onnx",), "--onnx")
    model = _archive.load(model_path)
    if not model.ingredients:
        raise UserError(
            f"{shown(model_path)}: was trained on svmlight rows, whose features have no names; not exported"
        )
    with Stages() as stages:
        stages.begin("read")
        sample = _sample(model, data, delimiter, data_format)
        stages.begin("export")
        result = to_onnx(model.pipeline, sample, onnx, description=model.description)
    if json:
        _show.print_json({"onnx": str(onnx)} | asdict(result))
        return
    for tensor in result.inputs[:20]:
        print(f"input   {_show.plain(tensor.name)}  {tensor.type} {_shape(tensor.shape)}")
    if len(result.inputs) > 20:
        print(f"… and {len(result.inputs) - 20} more inputs")
    for tensor in result.outputs:
        print(f"output  {_show.plain(tensor.name)}  {tensor.type} {_shape(tensor.shape)}")
    print(
        f"tried on {result.rows_checked} rows in onnxruntime: labels equal, probabilities within "
        f"{result.largest_difference:.1e}; opset {result.opset}"
    )
    print(f"{result.bytes:,} bytes written to {shown(onnx)}")


def _sample(model: _archive.Model, data: str | None, delimiter: str | None, data_format: str | None) -> Any:
    """The first rows of the data; without data, a table without rows."""
    import pandas as pd

    if data is None:
        parts = {part: "float64" if item.is_number else "object" for item in model.ingredients for part in item.parts}
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in parts.items()})
    with opened(data, delimiter=delimiter, data_format=data_format) as source:
        reader = rows_of(model, source)
        tables: list[Any] = []
        for batch in reader.batches(model.columns):
            tables.append(frame(reader, batch, model.ingredients))
            if sum(map(len, tables)) >= ROWS:
                break
        return pd.concat(tables).head(ROWS)


def _shape(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("rows" if size is None else str(size) for size in shape) + "]"
