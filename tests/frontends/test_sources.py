"""What `export` reads and refuses: folders, GGUF files, functions and modules; the command line and `compile`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from qcompiler.errors import ModelError, QCompilerError
from qcompiler.frontends.export import export
from qcompiler.frontends.sources import load
from qcompiler.frontends.weights import reserve as reserves
from qcompiler.runtime.session import Session
from tests.kit.architectures import MODELS, VOCABULARY
from tests.kit.cases import state
from tests.kit.frontends.torch_source import written


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def logits(path: Path, ids: Any) -> Any:
    session = Session(path)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None]}
    past = {name: np.zeros((1, 2, 0, 8), np.float32) for name in session.inputs if name.startswith("past")}
    return session.run(feeds | past)["logits"]


def test_folder_becomes_a_model_and_its_tokenizer(llama_folder: Path, tmp_path: Path) -> None:
    before = {path.name: state(path) for path in llama_folder.iterdir()}
    made = export(str(llama_folder), tmp_path / "out" / "model.onnx", past=False)
    ids = np.arange(1, 7)[None]
    with torch.no_grad():
        want = MODELS["llama"]()(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(logits(made.path, ids), want, atol=1e-4 * np.abs(want).max())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.onnx", "tokenizer.json"]
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (llama_folder / "tokenizer.json").read_bytes()
    assert made.notes == ()
    assert {path.name: state(path) for path in llama_folder.iterdir()} == before


def test_a_loader_that_looks_at_weights_gets_them(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserves, "LARGE", 500)
    monkeypatch.setattr(reserves.Reserve, "touched", lambda _: True)
    found = load(llama_folder, inputs=None, axes=None, trust_remote_code=False)
    assert found.reserve.weights(found.module) == []
    for name, value in MODELS["llama"]().state_dict().items():
        assert torch.equal(found.module.state_dict()[name], value)


def test_gguf_file_becomes_a_model(tmp_path: Path) -> None:
    model = MODELS["llama"]()
    path = tmp_path / "tiny.gguf"
    write_gguf(model, path)
    made = export(tmp_path, tmp_path / "out" / "model.onnx", past=False)
    ids = np.arange(1, 7)[None]
    with torch.no_grad():
        want = model(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(logits(made.path, ids), want, atol=1e-4 * np.abs(want).max())
    assert "rounded to its format" in made.notes[0]
    shutil.copy(path, tmp_path / "other.gguf")
    with pytest.raises(ModelError, match=r"holds 2 GGUF files \(other.gguf, tiny.gguf\): name the one"):
        export(tmp_path, tmp_path / "out" / "model.onnx")


def write_gguf(model: Any, path: Path) -> None:
    """The model as llama.cpp stores it: rows of q and k in the order of its rotary positions."""
    import gguf

    config, weights = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    names = {"embed_tokens": "token_embd", "lm_head": "output", "norm": "output_norm"}
    inner = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in weights.items():
        parts = name.removeprefix("model.").removesuffix(".weight").split(".")
        values = weight.numpy()
        if parts[-1] in heads:
            halves = values.reshape(heads[parts[-1]], 2, -1, values.shape[1])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        theirs = names[parts[0]] if parts[0] in names else f"blk.{parts[1]}.{inner['.'.join(parts[2:])]}"
        writer.add_tensor(f"{theirs}.weight", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"never read")


def incomplete(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


FOLDERS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no configuration": (lambda f: (f / "config.json").unlink(), ("without config.json", "fetch the whole")),
    "damaged configuration": (lambda f: (f / "config.json").write_text("{"), ("config.json", "JSON")),
    "no model type": (lambda f: edit(f, model_type=None), ("model_type",)),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ("no weights", "git lfs pull")),
    "pickled weights": (pickled, ("pytorch_model.bin", "nothing pickled", "save_pretrained")),
    "damaged weights": (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 64), ("cannot load",)),
    "incomplete weights": (incomplete, ("layers.1.mlp.up_proj", "random numbers", "architectures")),
    "quantized weights": (lambda f: edit(f, quantization_config={"quant_method": "awq"}), ("already (awq)", "float")),
    "unknown class": (
        lambda f: edit(f, architectures=["WonderForCausalLM"]),
        ("WonderForCausalLM", "file.py:function"),
    ),
    "unknown type": (lambda f: edit(f, model_type="wonder", architectures=None), ("wonder", "newer transformers")),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_cannot_be_used_say_what_to_do(case: str, folder: Path, tmp_path: Path) -> None:
    ruin, words = FOLDERS[case]
    ruin(folder)
    with pytest.raises(ModelError) as caught:
        export(folder, tmp_path / "out" / "m.onnx")
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_library_that_a_model_lacks_is_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: object, config: object, *_: object, **__: object) -> None:
        raise ImportError("MaskFormerLoss requires the scipy library: `pip install scipy`.")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "__init__", refused)
    with pytest.raises(ModelError, match=r"`pip install scipy`\. Install what it lacks\.$"):
        export(folder, tmp_path / "m.onnx")


def test_folder_without_configuration_points_to_the_onnx_file_in_it(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "made.onnx").touch()
    with pytest.raises(ModelError, match="holds 'made.onnx', which can be compiled as it is"):
        export(folder, tmp_path / "m.onnx")


def test_code_of_a_folder_runs_only_where_it_is_trusted(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").unlink()
    edit(
        folder,
        model_type="wonder",
        architectures=["Wonder"],
        auto_map={"AutoConfig": "modeling_wonder.Config", "AutoModelForCausalLM": "modeling_wonder.Wonder"},
    )
    trace = tmp_path / "ran"
    (folder / "modeling_wonder.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(trace)!r}).touch()\n"
        "class Config(LlamaConfig):\n    model_type = 'wonder'\n"
        "class Wonder(LlamaForCausalLM):\n    config_class = Config\n"
    )
    with pytest.raises(ModelError, match=r"modeling_wonder.py.*never run unasked.*--trust-remote-code"):
        export(folder, tmp_path / "m.onnx", past=False)
    assert not trace.exists()
    made = export(folder, tmp_path / "m.onnx", past=False, trust_remote_code=True)
    assert trace.exists()
    assert "no tokenizer could be read" in made.notes[0]


def test_a_tokenizer_that_transformers_cannot_use_is_kept_as_it_is(llama_folder: Path, tmp_path: Path) -> None:
    """Without its class written down, transformers takes Gemma's, which needs tokens that this one lacks."""
    from tokenizers import Tokenizer, models

    folder = tmp_path / "model"
    shutil.copytree(llama_folder, folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GemmaTokenizer"}')
    Tokenizer(models.BPE(vocab={"b": 0}, merges=[])).save(str(folder / "tokenizer.json"))
    made = export(folder, tmp_path / "out" / "model.onnx", past=False)
    assert made.notes[0].endswith("checked with random token ids")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def make(): pass", "no function 'build'"),
        ("def build(): return 3", "returned a int"),
        ("def build(): raise KeyError('w')", "KeyError"),
        ("import nothing_of_this_name", "fails when it is loaded"),
    ],
)
def test_functions_that_return_no_module_say_what_is_wrong(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(QCompilerError, match=words):
        export(written(tmp_path, text), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()
