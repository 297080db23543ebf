"""Exports compute what torch computes at sizes that were not traced: decoders, encoders, experts, encoder-decoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from qcompiler.frontends.tracing import expert_layers, exportable
from qcompiler.ir import decoder_io
from qcompiler.ir import model as models
from qcompiler.planning.placement import attention
from qcompiler.runtime.session import Session
from tests.kit.architectures import MODELS, VOCABULARY, WINDOW, Exports

DECODERS = ("llama", "gemma", "mixtral")
LAYERS, HEADS = 2, 2


def tokens(batch: int, length: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(1, VOCABULARY, (batch, length))


def steps(session: Session, ids: Any, lengths: list[int]) -> Any:
    """Logits of all tokens, computed in pieces with the cache, from an empty one on."""
    width: Any = session.inputs["past_key_values.0.key"][1][3]
    kept = {
        f"past_key_values.{layer}.{part}": np.zeros((len(ids), HEADS, 0, width), np.float32)
        for layer in range(LAYERS)
        for part in ("key", "value")
    }
    found, at = [], 0
    for length in lengths:
        end = at + length
        feeds = {
            "input_ids": ids[:, at:end],
            "attention_mask": np.ones((len(ids), end), np.int64),
            "position_ids": np.tile(np.arange(at, end), (len(ids), 1)),
        }
        got = session.run(feeds | kept)
        found.append(got["logits"])
        kept = {name: got[name.replace("past_key_values", "present")] for name in kept}
        at = end
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("lengths", [[1], [7], [5, 1], [5, 7], [1, 1, 1], [7, 1, 5]], ids=str)
@pytest.mark.parametrize("name", DECODERS)
def test_decoders_with_a_cache_take_any_batch_sequence_and_past(
    exports: Exports, name: str, batch: int, lengths: list[int]
) -> None:
    model, made = exports(name)
    ids = tokens(batch, sum(lengths))
    with torch.no_grad():
        want = model(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(steps(Session(made.path), ids, lengths), want, atol=2e-4 * np.abs(want).max())


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_decoders_without_a_cache_take_any_batch_and_sequence(exports: Exports, name: str) -> None:
    model, made = exports(name, past=False)
    session = Session(made.path)
    assert list(session.inputs) == ["input_ids", "attention_mask", "position_ids"]
    for batch, length in ((1, 1), (3, 7), (2, 2 * WINDOW)):
        ids = tokens(batch, length)
        feeds = {"attention_mask": np.ones_like(ids), "position_ids": np.tile(np.arange(length), (batch, 1))}
        with torch.no_grad():
            want = model(torch.from_numpy(ids)).logits.numpy()
        got = session.run({"input_ids": ids, **feeds})["logits"]
        np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_decoding_gives_the_tokens_of_transformers(exports: Exports, name: str) -> None:
    model, made = exports(name)
    session, ids = Session(made.path), tokens(2, 5, seed=1)
    want = model.generate(torch.from_numpy(ids), max_new_tokens=8, do_sample=False, pad_token_id=0).numpy()
    for _ in range(8):
        logits = steps(session, ids, [5] + [1] * (ids.shape[1] - 5))
        ids = np.concatenate([ids, logits[:, -1:].argmax(axis=-1)], axis=1)
    np.testing.assert_array_equal(ids, want)


def test_padding_on_the_left_changes_nothing(exports: Exports) -> None:
    session = Session(exports("gemma")[1].path)
    ids = tokens(1, 6)
    empty = {name: np.zeros((1, HEADS, 0, 16), np.float32) for name in session.inputs if name.startswith("past")}
    plain = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(6)[None]}
    padded = {name: np.pad(value, ((0, 0), (3, 0))) for name, value in plain.items()}
    one, other = (session.run(feeds | empty)["logits"] for feeds in (plain, padded))
    np.testing.assert_allclose(other[:, 3:], one, atol=1e-4 * np.abs(one).max())


@pytest.mark.parametrize("name", DECODERS)
def test_interface_has_the_names_and_free_dimensions_of_the_ecosystem(exports: Exports, name: str) -> None:
    made = exports(name)[1]
    inputs, outputs = made.inputs["model.onnx"], made.outputs["model.onnx"]
    width = 16 if name == "gemma" else 8
    assert inputs["input_ids"] == inputs["position_ids"] == ("batch", "sequence")
    assert inputs["attention_mask"] == ("batch", "past + sequence")
    assert outputs["logits"] == ("batch", "sequence", VOCABULARY)
    for layer in range(LAYERS):
        for part in ("key", "value"):
            assert inputs[f"past_key_values.{layer}.{part}"] == ("batch", HEADS, "past", width)
            assert outputs[f"present.{layer}.{part}"] == ("batch", HEADS, "past + sequence", width)
    assert len(inputs) == 3 + 2 * LAYERS
    assert decoder_io.of_model(models.load(made.path)) is not None
    assert made.kind == "decoder with cache"


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


def test_unrolled_experts_are_exact_for_every_routing() -> None:
    model = MODELS["mixtral"]()
    experts = model.model.layers[0].mlp.experts
    rows = torch.randn(12, 32, generator=torch.Generator().manual_seed(0))
    pairs = torch.tensor([(one, other) for one in range(4) for other in range(4) if one != other])
    weights = torch.rand(12, 2, generator=torch.Generator().manual_seed(1))
    same = torch.tensor([[2, 0]]).repeat(12, 1)  # experts 1 and 3 see nothing
    unrolled = expert_layers(experts)
    for chosen in (pairs, pairs.flip(0), same):
        with torch.no_grad():
            torch.testing.assert_close(unrolled(rows, chosen, weights), experts(rows, chosen, weights))


def test_experts_that_see_no_token_cannot_spoil_the_result() -> None:
    model = MODELS["mixtral"]()
    experts = model.model.layers[0].mlp.experts
    experts.gate_up_proj.data[3] = 1e30  # overflows for whatever goes in
    rows = torch.ones(2, 32)
    with torch.no_grad():
        found = expert_layers(experts)(rows, torch.tensor([[0, 1], [1, 2]]), torch.full((2, 2), 0.5))
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 7), (2, 40)])
def test_encoders_return_states_and_pooler(exports: Exports, batch: int, length: int) -> None:
    model, made = exports("bert")
    assert made.kind == "encoder"
    ids = tokens(batch, length)
    mask = np.ones_like(ids)
    mask[0, max(1, length - 2) :] = 0
    with torch.no_grad():
        want = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    got = Session(made.path).run({"input_ids": ids, "attention_mask": mask})
    assert list(got) == ["last_hidden_state", "pooler_output"]
    for name, value in got.items():
        np.testing.assert_allclose(value, want[name].numpy(), atol=1e-4)


def test_encoder_and_decoder_together_generate_what_transformers_does(exports: Exports) -> None:
    model, made = exports("t5")
    assert [path.name for path in made.paths] == ["encoder_model.onnx", "decoder_model.onnx"]
    encoder, decoder = map(Session, made.paths)
    ids, mask = tokens(2, 9), np.ones((2, 9), np.int64)
    mask[0, 6:] = 0
    feeds = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    want = model.generate(**feeds, max_new_tokens=6, do_sample=False).numpy()
    encoded = encoder.run({"input_ids": ids, "attention_mask": mask})
    fixed = {name.replace("present", "past_key_values"): x for name, x in encoded.items() if "present" in name}
    own = [name for name in decoder.inputs if ".decoder." in name]
    kept = {name: np.zeros((2, 4, 0, 8), np.float32) for name in own}
    words = np.zeros((2, 1), np.int64)
    for _ in range(6):
        got = decoder.run({"input_ids": words[:, -1:], "encoder_attention_mask": mask, **fixed, **kept})
        kept = {name: got[name.replace("past_key_values", "present")] for name in own}
        words = np.concatenate([words, got["logits"].argmax(axis=-1)], axis=1)
    np.testing.assert_array_equal(words, want)


def test_check_ran_steps_with_the_cache_and_found_the_error_of_rounding(exports: Exports) -> None:
    made = exports("llama")[1]
    told = made.to_json()
    assert {"prefill 3x7", "decode 3x1 after 7", "decode 3x4 after 10", "prefill 1x1"} <= set(told["steps"])
    assert 0 < made.error == max(told["steps"].values()) < 1e-5
    assert any(one.output == "present.1.value" for one in made.checked)


def test_sliding_window_is_filled_by_the_check(exports: Exports) -> None:
    assert f"decode 1x1 after {WINDOW + 3}" in exports("gemma")[1].to_json()["steps"]


def test_model_is_put_back_as_it_was() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MAKERS

    model = MODELS["mixtral"]()
    block, maker, kind = model.model.layers[0].mlp, MAKERS["eager"], model.config._attn_implementation
    experts = block.experts

    def broken() -> None:
        with exportable(model):
            assert model.config._attn_implementation == "eager"
            assert block.experts is not experts
            assert MAKERS["eager"] is not maker
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert block.experts is experts
    assert model.config._attn_implementation == kind != "eager"
    assert MAKERS["eager"] is maker
