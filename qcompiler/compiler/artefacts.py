"""Where the artefacts of a compilation go, and how they get there complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompiler.data.text import Text
from qcompiler.errors import QCompilerError, UsageError
from qcompiler.ir import model as models
from qcompiler.report import manifest
from qcompiler.support import held
from qcompiler.support.atomic import Artefacts, flush, flush_folder, make_folder, remove_empty, unwritable
from qcompiler.support.interrupts import WRITTEN, unbroken


@dataclass(frozen=True)
class Paths:
    """The artefacts of one compilation: one folder, one stem."""

    engine: Path | None
    qdq: Path
    manifest: Path
    report: Path

    @property
    def output(self) -> Path:
        """What `-o` named."""
        return self.engine or self.qdq

    @property
    def stem(self) -> str:
        """What all names begin with."""
        return self.manifest.name.removesuffix(".manifest.json")

    @property
    def failed_manifest(self) -> Path:
        """What a compilation that missed a gate leaves for programs."""
        return self.manifest.with_name(f"{self.stem}.failed.manifest.json")

    @property
    def failed_report(self) -> Path:
        """What it leaves for people."""
        return self.manifest.with_name(f"{self.stem}.failed.report.html")

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


def refuse_overwriting(model: models.Model, data: object, paths: Paths, option: str = "--data") -> None:
    """No artefact may take the place of the model, of its external data, or of the file that the samples are in."""
    sources = {path.resolve(): "the model itself or its weights" for path in (model.source, *model.files) if path}
    if isinstance(data, (str, Path)):
        sources[Path(data).resolve()] = f"the file that {option} names"
    if isinstance(data, Text):
        sources.update({file.resolve(): "the file that --text names" for file in data.files})
    for path in (paths.engine, paths.qdq, paths.qdq.with_suffix(".data"), paths.manifest, paths.report):
        if path is not None and path.resolve() in sources:
            what = sources[path.resolve()]
            raise UsageError(f"output '{path}' is {what}, which is never written to: choose another name with -o")


@contextmanager
def workshop(paths: Paths) -> Iterator[Path]:
    """A folder beside the outputs in which they are made; whatever fails, it is gone and they are untouched.

    What a killed compilation left of its own is removed. An error that names a file in the folder names the artefact
    that the file was to become.

    Raises:
        UsageError: it cannot be made.
    """
    outside = paths.qdq.parent
    with ExitStack() as open_:
        try:
            open_.callback(remove_empty, make_folder(outside))
            shop = open_.enter_context(held.workshop(outside))
        except OSError as error:
            raise unwritable(paths.qdq, error) from error
        try:
            yield shop
        except QCompilerError as error:
            told = str(error).replace(str(shop.resolve()), str(outside)).replace(str(shop), str(outside))
            error.args = (told,)
            raise


def finish(shop: Path, paths: Paths, record: Mapping[str, Any]) -> None:
    """Writes manifest and report, then gives every artefact its place; what an earlier miss left there is removed.

    All of them are on the disk before the first has its name. The manifest, which has their hashes, gets its own last.

    Raises:
        UsageError: they cannot be written.
    """
    from qcompiler.report import html

    try:
        (shop / paths.manifest.name).write_text(manifest.to_text(record), encoding="utf8")
        (shop / paths.report.name).write_text(html.render(record), encoding="utf8")
        found = sorted(shop.iterdir(), key=lambda made: (made.name == paths.manifest.name, made.name))
        for made in found:
            if made.is_file():
                flush(made)
        with unbroken(WRITTEN):
            for made in found:
                os.replace(made, paths.qdq.parent / made.name)
            for stale in (paths.failed_manifest, paths.failed_report):
                stale.unlink(missing_ok=True)
        flush_folder(paths.qdq.parent)
    except OSError as error:
        raise unwritable(paths.qdq, error) from error


def leave(paths: Paths, record: Mapping[str, Any]) -> None:
    """Writes the manifest and the report of a compilation that missed a gate, both or none; other files stay.

    Raises:
        UsageError: they cannot be written.
    """
    from qcompiler.report import html

    with Artefacts() as files:
        files.write_bytes(paths.failed_manifest, manifest.to_text(record).encode("utf8"))
        files.write_bytes(paths.failed_report, html.render(record).encode("utf8"))
