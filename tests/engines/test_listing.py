from __future__ import annotations

from pathlib import Path

from qcompiler.engines import listing
from qcompiler.engines.base import Profile
from tests.engines.conftest import Build
from tests.kit import graphs

TEXT = """header {
  version = 5
  accelerators={sm89 sm120 }
}
descriptors {
  tensor={ alignment=128 const_payload_size=12288 dims={ 128 96 } name="w_constantInt8" offset=3 type=int8 }
  tensor={ alignment=16 dims={ "proxy.1" 128 } mem_prop=0 name="{ForeignNode[a...b]}.1" offset=0 region="" type=half }
  sub_tensor={ base="pool" const_offset=0 dims={ 64 96 } name="y" offset=0 strides={ 96 1 } type=float }
}
main {
 label bb1:
  shape_call={ name="__mye119_0"  layers="" subg_id=0 }
  fully_connected={ name="a+b" output={"y" } input={"{ForeignNode[a...b]}.1" "w_constantInt8" "gone" } stream=0 \
scalar_alpha_from_opnd=false alpha=3F000000 relu=false layers="[ONNX Layer: a]\x1f[ONNX Layer: b | then (then_branch) \
| if (If)]" }
  function={ name=__myl_Mul args={ "y" } input_args={ "y" } shape_args_count=0 output_args={ "y" } layers="[ONNX \
Layer: odd \\"name]" swap_ab=false }
}
shape_main {
 label bb2:
  mul={ name="ignored" output={"y" } input={"y" } }
}
"""


def test_a_text_that_is_cut_off_inside_its_sizes_is_read_as_far_as_it_goes() -> None:
    cut = TEXT[: TEXT.index("dims={ 128 96")] + "dims={" + ' 1 "batch"' * 40 + ' name="cut" type=half'
    found = listing.parse(cut)
    assert (found.sms, found.ops) == (("sm89", "sm120"), ())
    assert found.tensors["cut"].dims == ()
    whole = listing.parse(cut.replace(" name=", " } name=") + " }\n}\n")
    assert len(whole.tensors["cut"].dims) == 80


def test_the_golden_text_is_read_in_full() -> None:
    found = listing.parse(TEXT)
    product, kernel = found.ops[1:]
    assert found.sms == ("sm89", "sm120")
    assert not found.body
    assert [op.kind for op in found.ops] == ["shape_call", "fully_connected", "function"]
    assert found.tensors["w_constantInt8"] == listing.Tensor("w_constantInt8", "int8", (128, 96), True)
    assert found.tensors["{ForeignNode[a...b]}.1"].dims == (None, 128)
    assert product.name == "a+b"
    assert product.input_types == ("half", "int8", "?")
    assert product.output_types == ("float",)
    assert product.alpha == 0.5
    assert product.layers == ("a", "b | then (then_branch) | if (If)")
    assert product.nodes >= {"a", "b"}
    assert kernel.name == "__myl_Mul"
    assert kernel.layers == ('odd "name',)
    assert kernel.alpha is None
    assert kernel.input_types == ("float",)


def test_a_layer_that_was_made_another_one_keeps_its_name() -> None:
    made = TEXT.replace("[ONNX Layer: a]", "[ONNX Layer: a]__gemm_from_conv1x1")
    assert made != TEXT
    assert listing.parse(made).ops[1].layers == listing.parse(TEXT).ops[1].layers
    assert listing.parse(made).ops[1].layers[0] == "a"


def test_a_plan_with_garbage_around_texts_is_read(tmp_path: Path) -> None:
    plan = tmp_path / "plan"
    plan.write_bytes(b"\x00\xffheader {\nnot one\x00" + TEXT.encode() + b"\x00" * 9 + TEXT.encode() + b"\x00tail")
    assert [len(one.ops) for one in listing.read(plan)] == [3, 3]


def test_files_without_a_listing_give_none(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 64)
    assert listing.read(tmp_path / "empty") == listing.read(tmp_path / "noise") == []


def test_a_real_plan_lists_the_product_with_its_types(build: Build) -> None:
    _, engine = build(graphs.matmul(), sms=("sm80", "sm89", "sm120"))
    (found,) = listing.read(engine.path)
    (product,) = (op for op in found.ops if op.kind == "fully_connected")
    assert found.sms == ("sm80", "sm89", "sm120")
    assert product.input_types[:2] == ("int8", "int8")
    assert product.output_types == ("float",)
    assert product.layers == ("mm", "a_dq", "w_dq")
    assert product.alpha == 1.0
    assert found.tensors["w_constantInt8"].dims == (128, 96)


def test_names_with_strange_characters_survive(build: Build) -> None:
    b = graphs.matmul()
    odd = 'büro/layer.0 | "x" [y] {z}'
    next(node for node in b.nodes if node.name == "mm").name = odd
    _, engine = build(b)
    (found,) = listing.read(engine.path)
    (product,) = (op for op in found.ops if op.kind == "fully_connected")
    assert odd in product.nodes


def test_each_profile_has_a_listing(build: Build) -> None:
    profiles = [Profile({"x": ((n, 128), (n, 128), (2 * n, 128))}) for n in (1, 8)]
    assert len(listing.read(build(graphs.matmul("batch"), *profiles)[1].path)) == 2
