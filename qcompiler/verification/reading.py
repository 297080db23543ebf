"""A user's model as everything else takes it: files of opset 1 to 6 are taken to opset 7 at once, or refused."""

from __future__ import annotations

from pathlib import Path

from qcompiler.errors import ModelError
from qcompiler.ir import model as models
from qcompiler.ir.model import OLDEST_OPSET, Model
from qcompiler.ir.signature import inputs_of
from qcompiler.passes.base import Pipeline
from qcompiler.passes.cleanup.name_everything import NameEverything
from qcompiler.passes.cleanup.normalize_constants import NormalizeConstants
from qcompiler.passes.opsets.raise_opset import RaiseOpset
from qcompiler.verification.equivalence import Equivalence, probes, run_checked


def read(source: str | Path | Model) -> Model:
    """The model in opset 7 or newer; one that is read already stays as it is.

    ONNX Runtime promises nothing of older opsets. Where it runs such a model all the same, what the conversion gives is
    compared with it on feeds that are made up.

    Raises:
        ModelError: the file cannot be read, or is too old and cannot be converted; the message names the node.
    """
    if isinstance(source, Model):
        return source
    model = models.load(source, oldest=1)
    old = int(model.graph.opset)
    if old >= OLDEST_OPSET:
        return model
    tried = probes(model, inputs_of(model.graph), ())
    equal = Equivalence(model, (), tried.made) if tried.feeds else None
    pipeline = Pipeline(NameEverything(), NormalizeConstants(), RaiseOpset(OLDEST_OPSET))
    raised, done = run_checked(pipeline, model, equal, lambda: None)
    undone = next((report.undone for report, _ in done if report.undone), "")
    if undone:
        raise ModelError(
            f"'{source}' uses opset {old}, and what it means cannot be said in opset {OLDEST_OPSET}: {undone} Export "
            "the model again with opset 13 or newer."
        )
    return raised
