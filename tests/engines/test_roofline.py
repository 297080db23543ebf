"""What an engine takes, read from the listings of real plans and from made-up ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompiler.engines.base import Profile
from qcompiler.engines.rates import gpus
from qcompiler.engines.roofline import Roofline, roofline
from qcompiler.target import DType
from tests.engines.conftest import Build
from tests.kit import graphs
from tests.kit.graphs import Builder

MACS = 64 * 128 * 96

TEXT = """header {{
  accelerators={{sm89 }}
}}
descriptors {{
  tensor={{ const_payload_size=4096 dims={{ 1000 64 }} name="table" type=half }}
  tensor={{ dims={{ 8 }} name="ids" type=int32 }}
  tensor={{ dims={{ 8 64 }} name="rows" type=half }}
  tensor={{ const_payload_size=4096 dims={{ 64 32 }} name="w" type=half }}
  tensor={{ dims={{ {size} 32 }} name="y" type=half }}
}}
main {{
 label bb1:
  function={{ name=__myl_Gath input_args={{ "table" "ids" }} output_args={{ "rows" }} layers="[ONNX Layer: gather]" }}
  fully_connected={{ name="mm" output={{"y" }} input={{"rows" "w" }} layers="[ONNX Layer: mm]" }}
  {jump}
}}
"""


def written(folder: Path, size: object = 8, jump: str = "") -> Path:
    (folder / "plan").write_bytes(TEXT.format(size=size, jump=jump).encode() + b"\0")
    return folder / "plan"


def test_products_are_counted_in_the_type_of_their_operands(build: Build) -> None:
    found = {}
    for name, graph in {"int8": graphs.matmul(axis=None), "wide": graphs.matmul(axis=1), "fp8": graphs.fp8()}.items():
        found[name] = roofline(build(graph)[1].path, {"mm": MACS})
    assert found["int8"].macs == found["wide"].macs == {DType.INT8: MACS}
    assert found["fp8"].macs == {DType.FP8: MACS}
    assert found["wide"].bytes > found["int8"].bytes  # raw accumulators in FP32
    assert len(found["wide"].launches) > len(found["int8"].launches)


def test_a_float_product_with_a_stored_weight_is_one_of_floats(build: Build) -> None:
    _, engine = build(graphs.weight_only())
    assert roofline(engine.path, {"mm": 10}).macs == {DType.FP16: 10}


def test_bytes_are_those_of_the_tensors_of_every_kernel(tmp_path: Path) -> None:
    found = roofline(written(tmp_path), {"mm": 8 * 64 * 32, "gone": 7})
    gathered = 2 * 8 * 64 * 2 + 8 * 4  # as much of the table as it writes, and the ids
    product = 2 * (8 * 64 + 64 * 32 + 8 * 32)
    assert [one.kernel.bytes for one in found.launches] == [gathered, product]
    assert found.bytes == gathered + product
    assert found.nodes == {"gather": gathered, "mm": product}
    assert found.macs == {DType.FP16: 8 * 64 * 32}
    assert (found.unlisted, found.unsized, found.jumps) == (7, 0, False)
    gpu = gpus()["sm89"]
    assert found.seconds(gpu) == pytest.approx(2 * gpu.kernel_us * 1e-6 + found.bytes / (gpu.gbps * gpu.memory * 1e9))


def test_what_is_known_only_at_run_time_is_counted_as_missing(tmp_path: Path) -> None:
    found = roofline(written(tmp_path, '"proxy.1"', "cjmp={ name=a }"), {"mm": 1})
    assert (found.unsized, found.jumps) == (1, True)
    assert found.launches[1].unsized
    assert [one.name for one in found.launches] == ["__myl_Gath", "mm"]


def test_a_single_row_is_multiplied_on_ordinary_cores(build: Build) -> None:
    b = Builder()
    x = b.input("x", [1, 64])
    w = b.constant("w", b.random.standard_normal((64, 32)).astype(np.float16))
    b.output(b.node("MatMul", [x, w], "mm"))
    assert roofline(build(b)[1].path, {"mm": 64 * 32}).macs == {DType.FP32: 64 * 32}


def test_only_the_first_profile_counts(build: Build) -> None:
    profiles = [Profile({"x": ((n, 128), (n, 128), (n, 128))}) for n in (64, 8)]
    both = roofline(build(graphs.matmul("batch"), *profiles)[1].path, {"mm": MACS})
    alone = roofline(build(graphs.matmul("batch"), profiles[0])[1].path, {"mm": MACS})
    assert both.bytes == alone.bytes
    assert both.macs == alone.macs == {DType.INT8: MACS}


def test_a_file_without_a_listing_has_no_launches(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(bytes(range(256)))
    assert roofline(tmp_path / "noise", {"mm": 1}) == Roofline((), 1)
