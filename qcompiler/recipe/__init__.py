"""What is asked for: one frozen value for Python, TOML, the command line and the manifest."""

from qcompiler.recipe.recipe import PRESETS, Recipe, preset
from qcompiler.recipe.tables import (
    GenerationTable,
    LlmInt8Table,
    QfemTable,
    QfepTable,
    SafetyTable,
    SmoothQuantTable,
    TextTable,
    WeightOnlyTable,
)

__all__ = [
    "PRESETS",
    "GenerationTable",
    "LlmInt8Table",
    "QfemTable",
    "QfepTable",
    "Recipe",
    "SafetyTable",
    "SmoothQuantTable",
    "TextTable",
    "WeightOnlyTable",
    "preset",
]
