"""The plain process that others are held against: ONNX Runtime on a model, once for every sample.

python -m benchmarks.children.plain MODEL.onnx DATA        DATA: a folder of .npz files, a sample each
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def main(model: str, data: str) -> None:
    """Runs them all and keeps nothing."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = {one.name for one in session.get_inputs()}
    for path in sorted(Path(data).glob("*.npz")):
        with np.load(path) as sample:
            session.run(None, {name: sample[name] for name in sample.files if name in names})


if __name__ == "__main__":
    main(*sys.argv[1:3])
