"""Weights that the weight-only stage has stored, put together by hand."""

from __future__ import annotations

import numpy as np

from qcompiler.numerics.blocks import Blocks
from qcompiler.recipe.tables import WeightOnlyTable
from qcompiler.target import parse_target
from qcompiler.weight_only.storable import StorableLayer, WeightOnlyOptions
from qcompiler.weight_only.stored import Stored, StoredWeight


def stored(**known_db: float) -> Stored:
    """Weights of a hundred numbers each; what their outputs reach, by name of the layer."""
    options = WeightOnlyOptions("int8-weight", WeightOnlyTable(), parse_target("onnxruntime"))
    values = Blocks(np.zeros((10, 10), np.int8), np.ones(10, np.float32), None, "int8")
    return Stored(
        options,
        "rtn",
        {
            name: StoredWeight(
                StorableLayer(name, "MatMul", "x", 10, 10, "int8", None), values, "rtn", 40.0, known, 0.0
            )
            for name, known in known_db.items()
        },
    )
