"""What `export` reads and refuses: folders, GGUF files, functions and modules; the command line and `compile`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qcompiler
from qcompiler.cli.main import main
from qcompiler.errors import ModelError, QCompilerError, UsageError
from qcompiler.frontends.export import export
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SmoothQuantTable
from qcompiler.runtime.session import Session
from tests.kit.architectures import MODELS, VOCABULARY
from tests.kit.cases import state

WORDS = ("[UNK]", "the", "The", "harbour", "was", "quiet", "at", "noon", ".", "A", ",")


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with safetensors and a tokenizer; nobody may change it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("llama.v1")
    MODELS["llama"]().save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "model_input_names": ["input_ids"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    """A copy of it to break."""
    return Path(shutil.copytree(llama_folder, tmp_path / "model"))


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


BUILD = """
import torch

class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv1d(3, 8, 3, padding=1)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, signal, gain):
        hidden = self.drop(self.first(signal)).relu()
        return {"energy": hidden.mean(dim=1), "peak": hidden.amax(dim=(1, 2)) * gain}

def build():
    return Layers(), {"signal": torch.ones(1, 3, 20), "gain": torch.ones(1)}, AXES
"""


def written(folder: Path, text: str) -> str:
    (folder / "net.py").write_text(text)
    return f"{folder / 'net.py'}:build"


def test_function_may_return_a_module_with_inputs_and_free_dimensions(tmp_path: Path) -> None:
    axes = "{'signal': {0: 'batch', 2: 'time'}, 'gain': {0: 'batch'}}"
    made = export(written(tmp_path, BUILD.replace("AXES", axes)), tmp_path / "m.onnx")
    assert made.kind == "module"
    assert made.inputs["m.onnx"] == {"signal": ("batch", 3, "time"), "gain": ("batch",)}
    got = Session(made.path).run({"signal": np.ones((4, 3, 9), np.float32), "gain": np.ones(4, np.float32)})
    assert {name: value.shape for name, value in got.items()} == {"energy": (4, 9), "peak": (4,)}
    assert {one.step for one in made.checked} == {"as traced", "free dimensions 1", "free dimensions + 1"}


def test_module_is_left_in_training_and_its_batch_is_free_by_default(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
    made = qcompiler.export(module, tmp_path / "m.onnx", inputs={"input": np.ones((1, 4), np.float32)})
    assert made.inputs["m.onnx"] == {"input": ("batch", 4)}
    assert module.training
    assert module[1].training


class Counting(torch.nn.Module):  # type: ignore[misc] # torch is not typed here
    """Returns something else each time, which no graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return x + self.calls


class Deciding(torch.nn.Module):  # type: ignore[misc]
    """Decides by a value."""

    def forward(self, x: Any) -> Any:
        return x if x.sum() > 0 else -x


class Fixed(torch.nn.Module):  # type: ignore[misc]
    """Decides by a size."""

    def forward(self, x: Any) -> Any:
        return x * 2 if x.shape[0] == 2 else x * 3


ROW = {"x": torch.ones(2, 4)}
MODULES: dict[str, tuple[Any, dict[str, Any], type[QCompilerError], str]] = {
    "other each time": (Counting(), {"inputs": ROW}, ModelError, "does not compute what torch computes"),
    "decides by value": (Deciding(), {"inputs": ROW}, ModelError, "torch cannot export Deciding"),
    "decides by size": (Fixed(), {"inputs": ROW}, ModelError, "does not run on inputs of other sizes"),
    "no inputs": (Deciding(), {}, UsageError, "example inputs are needed"),
    "unknown input": (Deciding(), {"inputs": {"y": ROW["x"]}}, UsageError, "no parameter 'y'"),
    "misfit": (torch.nn.Linear(3, 3), {"inputs": {"input": ROW["x"]}}, ModelError, "fails on its example inputs"),
    "unknown axes": (
        Fixed(),
        {"inputs": ROW, "axes": {"z": {0: "n"}}},
        UsageError,
        "free dimensions are given for 'z'",
    ),
    "far axis": (Fixed(), {"inputs": ROW, "axes": {"x": {5: "n"}}}, UsageError, "axis 5 is not one of them"),
    "half": (torch.nn.Linear(3, 3).half(), {"inputs": ROW}, ModelError, "float16.*module.float()"),
    "cache": (Fixed(), {"inputs": ROW, "past": True}, UsageError, "leave --past out"),
    "text": (3, {}, UsageError, "a int cannot be exported"),
}


@pytest.mark.parametrize("case", MODULES)
def test_modules_that_cannot_be_exported_say_what_to_do(case: str, tmp_path: Path) -> None:
    module, options, kind, words = MODULES[case]
    with pytest.raises(kind, match=words):
        export(module, tmp_path / "m.onnx", **options)
    assert list(tmp_path.iterdir()) == []


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


def test_output_must_be_an_onnx_file_and_no_file_of_the_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.onnx"):
        export(folder, tmp_path / "m.engine")
    (folder / "mine.onnx").touch()
    with pytest.raises(UsageError, match="a file of the model itself"):
        export(folder, folder / "mine.onnx")


def test_onnx_file_is_not_exported_again(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").touch()
    with pytest.raises(UsageError, match="an ONNX file already"):
        export(tmp_path / "a.onnx", tmp_path / "b.onnx")


@pytest.mark.parametrize("library", ["torch", "onnxscript", "transformers"])
def test_missing_libraries_are_named_with_the_extra_that_has_them(
    library: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["export", str(folder), "-o", str(tmp_path / "m.onnx")]) == 2
    said = capsys.readouterr().err
    assert f"'{library}'" in said
    assert "pip install 'onnx-qcompiler[torch]'" in said


def test_command_tells_the_result_as_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = written(tmp_path, BUILD.replace("AXES", "None"))
    assert main(["export", source, "-o", str(tmp_path / "m.onnx"), "--json", "--quiet"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["kind"] == "module"
    assert told["files"] == ["m.onnx"]
    assert 0 <= told["error"] < 1e-5


def test_command_ends_with_3_where_the_export_is_wrong(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = BUILD.replace("AXES", "None")
    assert main(["export", written(tmp_path, text), "-o", str(tmp_path / "m.onnx"), "--tolerance", "-1"]) == 3
    assert "does not compute what torch computes" in capfd.readouterr().err
    assert not (tmp_path / "m.onnx").exists()


def test_quantize_takes_a_folder(llama_folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    feeds: list[dict[str, Any]] = [
        {
            "input_ids": rng.integers(1, VOCABULARY, (1, 9)),
            "attention_mask": np.ones((1, 9), np.int64),
            "position_ids": np.arange(9)[None],
            **{
                f"past_key_values.{n}.{part}": np.zeros((1, 2, 0, 8), np.float32)
                for n in (0, 1)
                for part in ("key", "value")
            },
        }
        for _ in range(4)
    ]
    recipe = Recipe(target="onnxruntime", smooth_quant=SmoothQuantTable(alpha="off"))
    made = qcompiler.quantize(llama_folder, data=feeds, recipe=recipe, output=tmp_path / "m.qdq.onnx")
    assert made.plan.share() > 0.5
    assert made.verification is not None
    assert (made.verification.worst_sqnr_db or 0) > 10
    told = made.manifest["export"]
    assert told["kind"].startswith("decoder")
    assert told["files"]
    assert 0 <= told["error"] < 1e-4
    assert told["steps"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.manifest.json", "m.qdq.onnx", "m.report.html"]


def test_compile_refuses_what_cannot_work_before_it_exports(llama_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs the ranges of activations"):
        qcompiler.quantize(llama_folder, output=tmp_path / "m.qdq.onnx")
    assert list(tmp_path.iterdir()) == []


def test_torch_is_not_loaded_before_a_model_is_exported() -> None:
    program = (
        "import sys\n"
        "from qcompiler.frontends.export import export, exported\n"
        "from qcompiler.errors import QCompilerError\n"
        "try:\n    export('m.onnx', 'm.engine')\nexcept QCompilerError: pass\n"
        "print(*[name for name in ('torch', 'transformers', 'onnxscript') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
