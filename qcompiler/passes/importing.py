"""What every stage and tool begins with: a model as it comes, with FP32 for its FP16, BF16 and double."""

from __future__ import annotations

from pathlib import Path

from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.passes.base import Changed, Pipeline
from qcompiler.passes.cleanup.inline_functions import InlineFunctions
from qcompiler.passes.types.bound_factors import BoundFactors
from qcompiler.passes.types.keep_guards import KeepGuards
from qcompiler.passes.types.widen_floats import WidenFloats


def imported(source: str | Path | models.Model) -> models.Model:
    """A model whose float arithmetic is FP32; itself where it is so already.

    Its `ends` say which inputs and outputs have another type in the source, its `mended` which constants had lost their
    number there.

    Args:
        source: a file, or a model, which stays as it is.

    Raises:
        ModelError: the file cannot be read, or has a type that cannot be had.
    """
    model = source if isinstance(source, models.Model) else models.load(source)
    after = models.copy(model)
    # A function may be told a type by its caller, which shows only where its body is.
    inline = (InlineFunctions(),) if after.graph.functions else ()
    *_, bounding, guarding, widening = Pipeline(*inline, BoundFactors(), KeepGuards(), WidenFloats())(after.graph)
    if not widening.changed:
        return model
    before = {tensor.name: graphs.dtype_of(tensor) for tensor in (*model.graph.inputs, *model.graph.outputs)}
    ends = {
        tensor.name: before[tensor.name]
        for tensor in (*after.graph.inputs, *after.graph.outputs)
        if graphs.dtype_of(tensor) != before[tensor.name]
    }
    known = {name: dtype for name, dtype in ends.items() if dtype is not None}
    after.ends = {**model.ends, **known}
    changed = (note.node for note in (*bounding.notes, *guarding.notes) if isinstance(note, Changed))
    after.mended = tuple(dict.fromkeys((*model.mended, *changed)))
    return after
