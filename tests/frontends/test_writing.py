"""Weights are written one at a time, in the type in which they are stored, and the file means what it meant before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
import torch
from safetensors.torch import save_file

from qcompiler.errors import ModelError
from qcompiler.frontends import writing
from qcompiler.frontends.export import export
from qcompiler.frontends.weights import reserve as reserves
from qcompiler.frontends.weights.reserve import Reserve, held
from qcompiler.ir import model as models
from qcompiler.ir.model import Model
from qcompiler.passes.importing import imported
from qcompiler.runtime.session import Session
from qcompiler.support.progress import silent
from tests.kit.architectures import MODELS

WIDTH, LAYERS = 96, 3


def weights(dtype: Any = torch.float16) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(WIDTH, WIDTH, generator=generator).to(dtype) for _ in range(LAYERS)]


def chain(reserve: Reserve, stored: list[Any], *, tied: bool = False) -> Model:
    """x through layers whose weights are turned views; the first one is read once more where it is tied."""
    held_back = [reserve.weight(held(one)).detach().as_subclass(torch.Tensor).T.float().numpy() for one in stored]
    constants = [gs.Constant(f"w{at}", one) for at, one in enumerate(held_back)]
    x = last = gs.Variable("x", np.float32, [2, WIDTH])
    nodes = []
    for at, weight in enumerate((*constants, *(constants[:1] if tied else ()))):
        out = gs.Variable(f"y{at}", np.float32, [2, WIDTH])
        nodes.append(gs.Node("MatMul", f"layer{at}", {}, [last, weight], [out]))
        last = out
    return Model(gs.Graph(nodes, [x], [last], opset=18), {}, None, 10)


def written(model: Model, path: Path, reserve: Reserve) -> Path:
    with silent.stage("write") as shown:
        writing.save(model, path, reserve, shown)
    return path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_a_weight_keeps_its_type_and_is_widened_in_front_of_who_reads_it(
    dtype: Any, tied: bool, tmp_path: Path
) -> None:
    stored, reserve = weights(dtype), Reserve(100)
    path = written(chain(reserve, stored, tied=tied), tmp_path / "late.onnx", reserve)
    onnx.checker.check_model(str(path), full_check=True)
    own = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    kind = {torch.float16: np.float16, torch.bfloat16: ml_dtypes.bfloat16}.get(dtype, np.float32)
    assert {one.dtype for one in own.values()} == {np.dtype(kind)}
    assert len(own) == LAYERS
    now = written(chain(Reserve(None), stored, tied=tied), tmp_path / "now.onnx", Reserve(None))
    models.save(imported(path), tmp_path / "imported.onnx")
    assert (tmp_path / "imported.onnx").read_bytes() == now.read_bytes()
    feeds = {"x": np.random.default_rng(0).standard_normal((2, WIDTH)).astype(np.float32)}
    one, other = (next(iter(Session(file).run(feeds).values())) for file in (path, now))
    np.testing.assert_array_equal(one, other)
    assert not reserve.touched()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["imported.onnx", "late.onnx", "now.onnx"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_large_models_are_laid_out_as_save_does(dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "EMBEDDED", 1000)
    stored, reserve = weights(dtype), Reserve(100)
    path = written(chain(reserve, stored), tmp_path / "m.onnx", reserve)
    (tmp_path / "other").mkdir()
    models.save(models.load(path), tmp_path / "other" / "m.onnx", external_above=1000)
    for name in ("m.onnx", "m.data"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def half(model: Any) -> Any:
    return model.half()


def same(model: Any) -> Any:
    return model


@pytest.mark.parametrize(
    ("name", "typed"), [("llama", same), ("llama", half), ("mixtral", half)], ids=["llama", "FP16", "experts in FP16"]
)
def test_a_folder_is_exported_as_if_all_weights_were_in_memory(
    name: str, typed: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(MODELS[name]()).save_pretrained(tmp_path / "model")
    files = []
    for way, large in (("now", 1 << 40), ("late", 1025)):
        monkeypatch.setattr(reserves, "LARGE", large)
        files.append(export(tmp_path / "model", tmp_path / way / "m.onnx", past=False).path)
    models.save(imported(files[1]), tmp_path / "imported.onnx")
    assert (tmp_path / "imported.onnx").read_bytes() == files[0].read_bytes()
    if typed is half:
        assert files[1].stat().st_size < files[0].stat().st_size
        types = {one.data_type for one in onnx.load(files[1]).graph.initializer if len(one.dims) > 1}
        assert onnx.TensorProto.FLOAT16 in types
    else:
        assert files[1].read_bytes() == files[0].read_bytes()


def test_weights_that_were_looked_at_are_read_and_the_trace_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MODELS["llama"]().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(reserves, "LARGE", 1 << 40)
    right = export(tmp_path / "model", tmp_path / "now" / "m.onnx", past=False).path
    monkeypatch.setattr(reserves, "LARGE", 1025)
    filled: list[Any] = []
    asked, fill = iter((False, True)), Reserve.fill  # not while loading, but while tracing
    monkeypatch.setattr(Reserve, "touched", lambda _: next(asked))

    def noted(self: Reserve, module: Any) -> None:
        filled.append(module)
        fill(self, module)

    monkeypatch.setattr(Reserve, "fill", noted)
    again = export(tmp_path / "model", tmp_path / "again" / "m.onnx", past=False).path
    assert len(filled) == 2  # for the trace, and for the check
    assert again.read_bytes() == right.read_bytes()


CHILD = """
import resource, sys
from pathlib import Path
import numpy as np, onnx_graphsurgeon as gs, torch
from safetensors import safe_open
from qcompiler.frontends import writing
from qcompiler.frontends.weights.reserve import Reserve, Origin
from qcompiler.ir.model import Model
from qcompiler.support.progress import silent
folder, width = Path(sys.argv[1]), int(sys.argv[2])
reserve, nodes = Reserve(100), []
x = last = gs.Variable("x", np.float32, [2, width])
def source(name):
    def read():
        with safe_open(folder / "m.safetensors", framework="pt") as opened:
            return opened.get_tensor(name)
    return Origin((width, width), torch.float16, read)
for name in sys.argv[3:]:
    view = reserve.weight(source(name)).detach().as_subclass(torch.Tensor).T.numpy()
    last, before = gs.Variable(f"y{name}", np.float32, [2, width]), last
    nodes.append(gs.Node("MatMul", f"layer{name}", {}, [before, gs.Constant(f"w{name}", view)], [last]))
model = Model(gs.Graph(nodes, [x], [last], opset=18), {}, None, 10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with silent.stage("write") as shown:
    writing.save(model, folder / "m.onnx", reserve, shown)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured as Linux counts it")
def test_writing_takes_the_memory_of_one_weight(tmp_path: Path) -> None:
    width, names = 2048, [str(at) for at in range(24)]  # 8 MiB each, 192 MiB together
    save_file(
        {name: torch.full((width, width), 0.5, dtype=torch.float16) for name in names}, tmp_path / "m.safetensors"
    )
    told = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), str(width), *names], capture_output=True, text=True, check=True
    )
    assert float(told.stdout) < 64
    assert (tmp_path / "m.onnx").stat().st_size > 24 * 8 << 20


def test_a_weight_that_is_written_wrongly_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MODELS["llama"]().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(reserves, "LARGE", 1025)
    right = Reserve.values
    monkeypatch.setattr(Reserve, "values", lambda self, place: right(self, place) * 1.01)
    with pytest.raises(ModelError, match="does not compute what torch computes"):
        export(tmp_path / "model", tmp_path / "out" / "m.onnx", past=False)
    assert not (tmp_path / "out").exists()
