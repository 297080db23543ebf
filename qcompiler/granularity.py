"""How many scales a tensor has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole tensor: shape [] in ONNX, any opset that has the type."""


@dataclass(frozen=True, slots=True)
class PerAxis:
    """One scale per index of `axis`: a weight [M, C, kh, kw] with axis 0 has scales [M].

    TensorRT takes it for weights only, on the output channel: Conv 0, ConvTranspose 1, Gemm 0 with transB else 1,
    MatMul the last axis.
    """

    axis: int


@dataclass(frozen=True, slots=True)
class PerBlock:
    """One scale per `size` consecutive elements of `axis` (opset 21): [K, N] with axis 0 has scales [K/size, N]."""

    axis: int
    size: int


Granularity = PerTensor | PerAxis | PerBlock
