"""qcompiler: a float model in, a verified INT8 TensorRT engine out.

```python
import qcompiler

result = qcompiler.compile("model.onnx", data="calibration.npz", output="model.engine")
print(result.verification.worst_sqnr_db, result.plan.share())
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qcompiler._version import __version__

if TYPE_CHECKING:
    from qcompiler.compiler.build import build
    from qcompiler.compiler.compile import CompileResult, compile, quantize
    from qcompiler.data.text import Text
    from qcompiler.frontends.export import ExportResult, export
    from qcompiler.recipe import Recipe
    from qcompiler.tools.bench.bench import Bench, bench
    from qcompiler.tools.diff import Difference, diff
    from qcompiler.tools.explain import Explanation, explain
    from qcompiler.tools.inspect.inspection import Inspection, inspect
    from qcompiler.tools.sensitivity.sensitivity import Sensitivity, sensitivity
    from qcompiler.tools.verify import verify

__all__ = [
    "Bench",
    "CompileResult",
    "Difference",
    "Explanation",
    "ExportResult",
    "Inspection",
    "Recipe",
    "Sensitivity",
    "Text",
    "__version__",
    "bench",
    "build",
    "compile",
    "diff",
    "explain",
    "export",
    "inspect",
    "quantize",
    "sensitivity",
    "verify",
]

_HOMES = {
    "Bench": "tools.bench.bench",
    "CompileResult": "compiler.compile",
    "Difference": "tools.diff",
    "Explanation": "tools.explain",
    "ExportResult": "frontends.export",
    "Inspection": "tools.inspect.inspection",
    "Recipe": "recipe",
    "Sensitivity": "tools.sensitivity.sensitivity",
    "Text": "data.text",
    "bench": "tools.bench.bench",
    "build": "compiler.build",
    "compile": "compiler.compile",
    "diff": "tools.diff",
    "explain": "tools.explain",
    "export": "frontends.export",
    "inspect": "tools.inspect.inspection",
    "quantize": "compiler.compile",
    "sensitivity": "tools.sensitivity.sensitivity",
    "verify": "tools.verify",
}


def __getattr__(name: str) -> Any:
    """Loads the module of a public name when it is first used: importing the package costs nothing."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'qcompiler' has no attribute '{name}'")
    return getattr(importlib.import_module(f"qcompiler.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
