from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qcompiler.engines.base import Profile
from qcompiler.engines.gpu import capability
from qcompiler.engines.tensorrt_rtx import TensorRTRTX
from qcompiler.errors import EngineError, UsageError
from tests.engines.conftest import Build
from tests.kit import graphs


def test_an_engine_is_built_without_a_gpu_and_reports_what_it_is(build: Build) -> None:
    _, engine = build(graphs.matmul())
    assert engine.path.stat().st_size == engine.bytes > 10_000
    assert engine.engine == "tensorrt-rtx"
    assert engine.sms == ("sm89",)
    assert engine.version.startswith("1.7.")
    assert engine.seconds > 0
    assert engine.peak_rss_mb is None or engine.peak_rss_mb > 50
    assert json.loads(json.dumps(engine.to_json()))["path"] == str(engine.path)


def test_nothing_is_left_beside_the_engine(build: Build) -> None:
    _, engine = build(graphs.matmul())
    assert sorted(os.listdir(engine.path.parent)) == ["model.engine", "model.onnx"]


def test_two_builds_are_identical(build: Build) -> None:
    digests = {hashlib.sha256(build(graphs.matmul())[1].path.read_bytes()).hexdigest() for _ in range(2)}
    assert len(digests) == 1


def test_progress_rises_from_parsing_to_one(tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    model = graphs.matmul().save(tmp_path / "m.onnx")
    TensorRTRTX().build(model, tmp_path / "m.engine", progress=lambda phase, share: seen.append((phase, share)))
    shares = [share for phase, share in seen if phase == "build"]
    assert seen[0] == ("parse", 0.0)
    assert len(shares) > 5
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_weights_in_external_data_beside_the_model_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = graphs.matmul().save(tmp_path / "m.onnx", external=True)
    assert (tmp_path / "m.onnx.data").stat().st_size >= 128 * 96
    monkeypatch.chdir("/")
    assert TensorRTRTX().build(model, tmp_path / "m.engine").bytes > 0


def test_relative_paths_are_those_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs.matmul().save(tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    TensorRTRTX().build("m.onnx", "out/m.engine")
    assert (tmp_path / "out" / "m.engine").exists()


def test_missing_external_data_is_an_engine_error(tmp_path: Path) -> None:
    model = graphs.matmul().save(tmp_path / "m.onnx", external=True)
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(EngineError, match="refuses"):
        TensorRTRTX().build(model, tmp_path / "m.engine")
    assert not (tmp_path / "m.engine").exists()


def test_a_dynamic_input_is_built_with_one_and_with_two_profiles(build: Build) -> None:
    small = Profile({"x": ((1, 128), (4, 128), (8, 128))})
    large = Profile({"x": ((8, 128), (32, 128), (64, 128))})
    assert build(graphs.matmul("batch"), small)[1].bytes < build(graphs.matmul("batch"), small, large)[1].bytes


def test_a_dynamic_input_without_a_profile_is_named(build: Build) -> None:
    with pytest.raises(EngineError, match="input 'x' .* is dynamic, and no profile was given"):
        build(graphs.matmul("batch"))


def test_a_profile_of_an_unknown_input_is_refused(build: Build) -> None:
    with pytest.raises(EngineError, match="speaks of input 'y'"):
        build(graphs.matmul(), Profile({"y": ((1, 128), (4, 128), (8, 128))}))


def test_a_good_model_has_no_diagnostics(tmp_path: Path) -> None:
    assert TensorRTRTX().check(graphs.matmul().save(tmp_path / "m.onnx")) == []


def test_check_names_the_node_with_a_zero_point(tmp_path: Path) -> None:
    found = TensorRTRTX().check(graphs.shifted().save(tmp_path / "m.onnx"))
    assert [(one.node, one.op) for one in found] == [("a_q", "QuantizeLinear")]
    assert "Non-zero zero point" in found[0].message


def test_build_names_the_node_with_a_zero_point(build: Build) -> None:
    with pytest.raises(EngineError, match=r"at node a_q \(QuantizeLinear\)"):
        build(graphs.shifted())


def test_unsigned_quantization_is_refused_by_check_and_build(tmp_path: Path) -> None:
    model = graphs.unsigned().save(tmp_path / "m.onnx")
    assert [one.node for one in TensorRTRTX().check(model)] == ["a_q", "a_dq"]
    with pytest.raises(EngineError, match="UINT8 .* 'a_q'"):
        TensorRTRTX().build(model, tmp_path / "m.engine")
    assert not (tmp_path / "m.engine").exists()


def test_an_omitted_zero_point_is_unsigned_too(tmp_path: Path) -> None:
    b = graphs.matmul()
    for node in b.nodes:
        if node.name in ("a_q", "a_dq"):
            del node.input[2]
    assert [one.node for one in TensorRTRTX().check(b.save(tmp_path / "m.onnx"))] == ["a_q", "a_dq"]


def test_fp8_is_refused_for_an_sm_that_lacks_it_and_the_fix_is_named(build: Build) -> None:
    with pytest.raises(EngineError, match="FP8 needs sm89 or newer"):
        build(graphs.fp8(), sms=("sm80", "sm89"))


def test_fp8_builds_for_the_sms_that_have_it(build: Build) -> None:
    assert build(graphs.fp8(), sms=("sm89", "sm120"))[1].sms == ("sm89", "sm120")


def test_an_sm_that_the_library_lacks_is_refused_at_once() -> None:
    with pytest.raises(EngineError, match="no sm90.*sm120"):
        TensorRTRTX(sms=("sm90",))


def test_an_impossible_workspace_is_refused() -> None:
    with pytest.raises(UsageError, match="workspace of 0"):
        TensorRTRTX(workspace_mb=0)


def test_too_little_workspace_names_the_cure(tmp_path: Path) -> None:
    model = graphs.matmul().save(tmp_path / "m.onnx")
    with pytest.raises(EngineError, match="more scratch memory than there is: smaller largest shapes"):
        TensorRTRTX(workspace_mb=1).build(model, tmp_path / "m.engine")


@pytest.mark.parametrize("content", [b"", b"\x08\x09garbage" * 100], ids=["empty", "random"])
def test_a_file_that_is_no_model_is_an_engine_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    assert [one.node for one in TensorRTRTX().check(tmp_path / "m.onnx")] == [""]
    with pytest.raises(EngineError, match=r"m\.onnx"):
        TensorRTRTX().build(tmp_path / "m.onnx", tmp_path / "m.engine")
    assert os.listdir(tmp_path) == ["m.onnx"]


def _stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Lets the child be another program."""
    folder.mkdir()
    (folder / "stand_in.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr("qcompiler.engines.tensorrt_rtx.CHILD", "stand_in")


def test_a_crash_becomes_an_error_with_the_last_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import json, os, signal
print(json.dumps({"event": "log", "severity": "ERROR", "text": "fusing node mm"}), flush=True)
signal.signal(signal.SIGSEGV, signal.SIG_DFL)
os.kill(os.getpid(), signal.SIGSEGV)
"""
    model = graphs.matmul().save(tmp_path / "m.onnx")
    _stand_in(monkeypatch, tmp_path / "code", code)
    with pytest.raises(EngineError, match="killed by SIGSEGV; the last it said was: fusing node mm"):
        TensorRTRTX().build(model, tmp_path / "m.engine")
    assert sorted(os.listdir(tmp_path)) == ["code", "m.onnx"]


def test_a_child_that_fails_before_it_speaks_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = graphs.matmul().save(tmp_path / "m.onnx")
    _stand_in(monkeypatch, tmp_path / "code", "raise SystemExit('no room for shared objects')")
    with pytest.raises(EngineError, match="exit code 1; the last it said was: no room for shared objects"):
        TensorRTRTX().check(model)


def test_a_missing_library_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = graphs.matmul().save(tmp_path / "m.onnx")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "tensorrt_rtx.py").write_text("raise ImportError('not here')")
    monkeypatch.syspath_prepend(tmp_path / "code")
    with pytest.raises(EngineError, match=r"pip install 'tensorrt-rtx>=1\.7\.1,<1\.8'"):
        TensorRTRTX().check(model)


def test_an_interrupt_ends_the_child_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[subprocess.Popen[str]] = []
    real = subprocess.Popen

    def spy(*args: object, **kwargs: object) -> subprocess.Popen[str]:
        children.append(real(*args, **kwargs))  # type: ignore[call-overload]
        return children[-1]

    def interrupt(phase: str, share: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", spy)
    model = graphs.matmul().save(tmp_path / "m.onnx")
    with pytest.raises(KeyboardInterrupt):
        TensorRTRTX().build(model, tmp_path / "m.engine", progress=interrupt)
    assert [child.poll() is not None for child in children] == [True]
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_the_child_ends_and_cleans_up_when_its_parent_is_gone(tmp_path: Path) -> None:
    draft = tmp_path / "draft"
    draft.touch()
    code = "from qcompiler.engines import rtx_child as c; import time; c._run = lambda *_: time.sleep(60); c.main()"
    task = json.dumps({"task": "build", "output": str(draft)}) + "\n"
    done = subprocess.run([sys.executable, "-c", code], input=task, text=True, timeout=30, check=False)
    assert done.returncode == 3
    assert not draft.exists()


def test_the_library_is_never_loaded_into_this_process(build: Build) -> None:
    build(graphs.matmul())
    assert "tensorrt_rtx" not in sys.modules


@pytest.mark.skipif(capability() is not None, reason="there is a GPU here")
def test_opening_an_engine_without_a_gpu_says_what_is_missing(build: Build) -> None:
    with pytest.raises(EngineError, match="needs an NVIDIA GPU and its driver"):
        TensorRTRTX().open(build(graphs.matmul())[1])
