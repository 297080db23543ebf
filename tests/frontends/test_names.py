"""Names of exported nodes, weights and files: those of the model's own code, and nothing of the machine."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from qcompiler.ir import model as models
from qcompiler.planning.placement import attention
from tests.kit.architectures import Exports
from tests.kit.frontends.exported import DECODERS, LAYERS


@pytest.mark.parametrize("name", DECODERS)
def test_graphs_are_valid_and_are_what_the_passes_know(exports: Exports, name: str) -> None:
    path = exports(name)[1].path
    onnx.checker.check_model(str(path), full_check=True)
    graph = models.load(path).graph
    assert len(attention.find_attentions(graph)) == LAYERS
    nodes = {node.name: node.op for node in graph.nodes}
    assert nodes["model.layers.1.self_attn.q_proj/MatMul"] == "MatMul"
    assert "model.layers.1.self_attn.q_proj.weight" in {t.name for node in graph.nodes for t in node.inputs}
    assert not {"GatherND", "NonZero", "Loop", "If", "ScatterND", "IsNaN"} & set(nodes.values())


def test_files_say_nothing_of_the_machine_that_made_them(exports: Exports) -> None:
    content = exports("llama")[1].path.read_bytes()
    for part in (b".py", str(Path.home()).encode(), b"site-packages", b"pkg.torch"):
        assert part not in content


def test_experts_are_layers_of_their_own(exports: Exports) -> None:
    graph = models.load(exports("mixtral")[1].path).graph
    names = {node.name for node in graph.nodes}
    for layer in ("gate_proj", "up_proj", "down_proj"):
        assert {f"model.layers.0.mlp.experts.{expert}.{layer}/MatMul" for expert in range(4)} <= names
