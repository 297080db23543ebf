"""The stage that writes the lowered model, and the prefix where callers manage the cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qcompiler.compiler.artefacts import Paths
from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.ir import decoder_io
from qcompiler.ir import model as models
from qcompiler.outliers.qfep.find import Prefixed, save
from qcompiler.passes.behind import Unmeasured
from qcompiler.passes.known_part import whole
from qcompiler.support.file import File, ModelFile


@dataclass(frozen=True)
class ArtefactNames:
    """Where files are made.

    Attributes:
        folder: the workshop.
        qdq: name of the quantized ONNX file.
        stem: what other names begin with.
        shard: most bytes of a file of weights; None for one file, where they do not fit into the model's own.
    """

    folder: Path
    qdq: str
    stem: str
    shard: int | None = None

    @staticmethod
    def of(paths: Paths, folder: Path, shard: int | None) -> ArtefactNames:
        """Names of the artefacts of a compilation, inside its workshop."""
        return ArtefactNames(folder, paths.qdq.name, paths.stem, shard)


@stage(kept=False)
def write(
    run: Compilation,
    lowered: models.Model,
    prefix: Prefixed | None,
    names: ArtefactNames,
    behind: Unmeasured | None = None,
) -> Done[Path]:
    """The quantized ONNX file, with what stands `behind`; large weights stand beside it.

    Raises:
        ModelError: what stands behind cannot be written in the same opset.
    """
    with run.working():
        written = models.save(whole(lowered, behind), names.folder / names.qdq, shard=names.shard)
        front = save(prefix, names.folder, names.stem)
    decoder = decoder_io.of_model(lowered)
    files = {"qdq": ModelFile.of(written[0], written[1:])} | ({"prefix": File.of(front)} if front else {})
    record = {"files": files, "cache": None if decoder is None else decoder.to_json()}
    return Done(written[0], record | ({"qfep": {"file": front.name}} if front else {}))
