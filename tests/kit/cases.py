"""Two small float models with data, each alone in a folder, for tests of the whole compiler."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.kit.rewrite import model

SAMPLES = 24


def convnet() -> onnx.ModelProto:
    """A stem, a residual block with batch norm, pooling and a head."""
    rng = np.random.default_rng(11)

    def kernel(*shape: int) -> Any:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    values: dict[str, Any] = {"w1": kernel(32, 3, 3, 3), "w2": kernel(32, 32, 3, 3), "w3": kernel(64, 32, 3, 3)}
    values |= {"b1": rng.standard_normal(32).astype(np.float32), "head": kernel(32, 64)}
    values |= {"gamma": rng.uniform(0.5, 2, 32).astype(np.float32), "beta": rng.standard_normal(32).astype(np.float32)}
    values |= {"mean": values["beta"] / 4, "var": rng.uniform(0.5, 2, 32).astype(np.float32)}
    return model(
        ("Conv", "x w1 b1", "c1", {"pads": [1] * 4}),
        ("Relu", "c1", "r1"),
        ("Conv", "r1 w2", "c2", {"pads": [1] * 4}),
        ("BatchNormalization", "c2 gamma beta mean var", "n2"),
        ("Add", "n2 r1", "s2"),
        ("Relu", "s2", "r2"),
        ("Conv", "r2 w3", "c3", {"pads": [1] * 4, "strides": [2, 2]}),
        ("Relu", "c3", "r3"),
        ("GlobalAveragePool", "r3", "p"),
        ("Flatten", "p", "f"),
        ("Gemm", "f head", "y", {"transB": 1}),
        inputs={"x": ("n", 3, 16, 16)},
        weights=values,
    )


def transformer() -> onnx.ModelProto:
    """One block of attention and feed-forward over 16 tokens, 64 wide, both residual."""
    rng = np.random.default_rng(12)
    shapes = {"wq": (64, 64), "wk": (64, 64), "wv": (64, 64), "wo": (64, 64), "w1": (64, 256), "w2": (256, 64)}
    values: dict[str, Any] = {
        name: (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32) for name, shape in shapes.items()
    }
    values |= {"g": np.ones(64, np.float32), "root": np.float32(8), "b1": rng.standard_normal(256).astype(np.float32)}
    return model(
        ("LayerNormalization", "x g", "l1", {"axis": -1}),
        ("MatMul", "l1 wq", "q"),
        ("MatMul", "l1 wk", "k"),
        ("MatMul", "l1 wv", "v"),
        ("Transpose", "k", "kt", {"perm": [0, 2, 1]}),
        ("MatMul", "q kt", "s"),
        ("Div", "s root", "sd"),
        ("Softmax", "sd", "a", {"axis": -1}),
        ("MatMul", "a v", "o"),
        ("MatMul", "o wo", "p"),
        ("Add", "x p", "x1"),
        ("LayerNormalization", "x1 g", "l2", {"axis": -1}),
        ("MatMul", "l2 w1", "h0"),
        ("Add", "h0 b1", "h1"),
        ("Relu", "h1", "h2"),
        ("MatMul", "h2 w2", "f"),
        ("Add", "x1 f", "y"),
        inputs={"x": ("n", 16, 64)},
        weights=values,
    )


MODELS = {"conv": (convnet, (3, 16, 16)), "transformer": (transformer, (16, 64))}
QUANTIZED = {"conv": {"C1", "C2", "C3"}, "transformer": {"Q", "K", "V", "P", "H0", "F"}}


@dataclass
class Case:
    """A model file and its data, alone in a folder."""

    folder: Path
    name: str

    @property
    def source(self) -> Path:
        return self.folder / "float.onnx"

    @property
    def data(self) -> Path:
        return self.folder / "data.npz"

    @property
    def rows(self) -> Any:
        shape = MODELS[self.name][1]
        return np.random.default_rng(13).standard_normal((SAMPLES, *shape)).astype(np.float32)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def left(self) -> list[str]:
        """Whatever lies in the output folder."""
        # os.walk, which does not mind that a folder disappears meanwhile
        return sorted(name for _, folders, files in os.walk(self.out) for name in (*folders, *files))


def prepared(folder: Path, name: str) -> Case:
    case = Case(folder, name)
    onnx.save(MODELS[name][0](), case.source)
    np.savez(case.data, x=case.rows)
    return case


def state(path: Path) -> tuple[str, int]:
    return hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns
