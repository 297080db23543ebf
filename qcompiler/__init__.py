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
    from qcompiler.benchmark import Bench, bench
    from qcompiler.compiler import CompileResult, build, compile, quantize, verify
    from qcompiler.export_model import ExportResult, export
    from qcompiler.inspection import Inspection, inspect
    from qcompiler.recipe import Recipe
    from qcompiler.study import Sensitivity, sensitivity
    from qcompiler.text import Text

__all__ = [
    "Bench",
    "CompileResult",
    "ExportResult",
    "Inspection",
    "Recipe",
    "Sensitivity",
    "Text",
    "__version__",
    "bench",
    "build",
    "compile",
    "export",
    "inspect",
    "quantize",
    "sensitivity",
    "verify",
]

_HOMES = {
    "Bench": "benchmark",
    "CompileResult": "compiler",
    "ExportResult": "export_model",
    "Inspection": "inspection",
    "Recipe": "recipe",
    "Sensitivity": "study",
    "Text": "text",
    "bench": "benchmark",
    "build": "compiler",
    "compile": "compiler",
    "export": "export_model",
    "inspect": "inspection",
    "quantize": "compiler",
    "sensitivity": "study",
    "verify": "compiler",
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
