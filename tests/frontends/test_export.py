"""What `export` writes and refuses, and what the command tells."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qcompiler
from qcompiler.cli.main import main
from qcompiler.errors import UsageError
from qcompiler.frontends.export import export
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SmoothQuantTable
from qcompiler.support.progress import ShownStage, Silent
from tests.kit.architectures import MODELS, VOCABULARY
from tests.kit.frontends.torch_source import BUILD, written


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


class Stopped(Silent):
    """Is interrupted when the first weight is written."""

    @contextmanager
    def stage(self, name: str, total: float | None = None) -> Iterator[ShownStage]:
        with super().stage(name, total) as shown:
            if name == "write the weights":
                shown.advance = interrupted  # type: ignore[method-assign]
            yield shown


def interrupted(steps: float = 1) -> None:
    raise KeyboardInterrupt(steps)


def test_an_interrupt_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    source = written(tmp_path, BUILD.replace("AXES", "None").replace("Conv1d(3, 8, 3", "Conv1d(3, 8000, 3"))
    with pytest.raises(KeyboardInterrupt):
        export(source, tmp_path / "here" / "m.onnx", progress=Stopped())
    assert not list((tmp_path / "here").iterdir())


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


def test_a_set_of_files_is_refused_by_compile_before_the_work(tmp_path: Path) -> None:
    MODELS["t5"]().save_pretrained(tmp_path / "t5")
    data = [{"input_ids": np.ones((1, 3), np.int64)}]
    with pytest.raises(UsageError, match=r"becomes 2 ONNX files .*encoder_NAME.onnx.*qcompiler export"):
        qcompiler.quantize(tmp_path / "t5", data=data, output=tmp_path / "m.qdq.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t5"]


RAISING = """
import torch

class Raising(torch.nn.Module):
    calls = 0

    def forward(self, x):
        Raising.calls += 1
        if Raising.calls > LIMIT:
            raise KeyError("a page of advice")
        return x + 1

def build():
    return Raising(), {"x": torch.ones(2, 3)}, {"x": {}}
"""


@pytest.mark.parametrize(
    ("limit", "words"), [(0, "fails on its example inputs"), (1, "cannot be prepared"), (2, "torch cannot export")]
)
def test_what_torch_raises_is_never_a_defect(
    limit: int, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = written(tmp_path, RAISING.replace("LIMIT", str(limit)))
    assert main(["export", source, "-o", str(tmp_path / "m.onnx"), "--quiet"]) == 3
    told = " ".join(capfd.readouterr().err.split())
    assert words in told
    assert "a page of advice" in told
    assert "defect" not in told


def test_a_model_whose_code_fixes_the_rows_takes_one_a_call(tmp_path: Path) -> None:
    import transformers

    class OneByOne(transformers.ViTModel):  # type: ignore[misc] # transformers is not typed here
        def forward(self, pixel_values: Any, **more: Any) -> Any:
            rows = [super(OneByOne, self).forward(one[None], **more).pooler_output for one in list(pixel_values)]
            return transformers.utils.ModelOutput(pooled=rows[0] if len(rows) == 1 else torch.cat(rows))

    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    made = export(OneByOne(config).eval(), tmp_path / "m.onnx")
    assert made.inputs["m.onnx"] == {"pixel_values": (1, 3, 16, 16)}
    assert "one row a call" in made.notes[0]
