"""What sentence-transformers folders refuse of options that are for decoders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qcompiler.errors import UsageError
from qcompiler.frontends.export import export


def test_a_pipeline_has_no_cache(folder: Path, tmp_path: Path) -> None:
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    (folder / "modules.json").write_text(json.dumps([{"path": path, "type": kind} for path, kind in kinds]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        '{"pooling_mode_lasttoken": true, "pooling_mode_mean_tokens": false}'
    )
    with pytest.raises(UsageError, match="leave --past out"):
        export(folder, tmp_path / "out" / "m.onnx", past=True)
