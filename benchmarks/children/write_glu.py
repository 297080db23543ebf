"""Writes the generated GLU decoder of the tests as a model folder: model.onnx, calib/, eval/."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from tests.kit import glu


def main(folder: str, outliers: str, count: str) -> None:
    """`outliers`: "planted" or "none"; `count` sequences go into each of calib/ and eval/."""
    for seed, split in enumerate(("calib", "eval")):
        (Path(folder) / split).mkdir(parents=True, exist_ok=True)
        for index, feeds in enumerate(glu.feeds(int(count), seed)):
            np.savez(Path(folder) / split / f"{index:05d}.npz", ids=feeds["ids"])
    network = glu.stack(channels=glu.OUTLIERS, spiking=glu.SPIKING) if outliers == "planted" else glu.stack()
    onnx.save(network, Path(folder) / "model.onnx")
