"""Where the artefacts of a compilation go, and how they get there complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from qcompiler import manifest
from qcompiler import model as models
from qcompiler.atomic import unwritable
from qcompiler.errors import UsageError

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Paths:
    """The artefacts of one compilation: one folder, one stem."""

    engine: Path | None
    qdq: Path
    manifest: Path
    report: Path

    @staticmethod
    def of(output: Path, *, build: bool) -> Paths:
        """From `-o`: `DIR/model.engine`, or `DIR/model.qdq.onnx` where nothing is built."""
        stem = output.name.removesuffix(".onnx").removesuffix(".qdq") if not build else output.stem
        folder = output.parent
        return Paths(
            output if build else None,
            folder / f"{stem}.qdq.onnx" if build else output,
            folder / f"{stem}.manifest.json",
            folder / f"{stem}.report.html",
        )


def refuse_overwriting(model: models.Model, paths: Paths) -> None:
    """No artefact may take the place of the model or of its external data."""
    sources = {path.resolve() for path in (model.source, *model.files) if path is not None}
    for path in (paths.engine, paths.qdq, paths.manifest, paths.report):
        if path is not None and path.resolve() in sources:
            raise UsageError(f"output '{path}' is the model itself or its data: choose another name for the output")


@contextmanager
def workshop(paths: Paths) -> Iterator[Path]:
    """A folder beside the outputs in which they are made; whatever fails, it is gone and they are untouched."""
    with TemporaryDirectory(prefix=".qcompiler-", dir=paths.qdq.parent) as folder:
        yield Path(folder)


def finish(shop: Path, paths: Paths, record: Mapping[str, Any]) -> None:
    """Writes manifest and report, then gives every artefact its place."""
    from qcompiler.report import html

    try:
        (shop / paths.manifest.name).write_text(manifest.to_text(record), encoding="utf8")
        (shop / paths.report.name).write_text(html.render(record), encoding="utf8")
        for made in sorted(shop.iterdir()):
            os.replace(made, paths.qdq.parent / made.name)
    except OSError as error:
        raise unwritable(paths.qdq, error) from error
