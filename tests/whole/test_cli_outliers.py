"""Options for outliers and mixed precisions: which recipe a line makes, and how a wrong value is answered."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qcompiler.cli.main import main
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import QfemTable, SmoothQuantTable
from tests.kit import manifests

Recipes = list[Recipe]


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> Recipes:
    """What `compile` and `quantize`, both replaced, were asked for."""
    asked: Recipes = []

    def run(source: str, *, recipe: Recipe, **options: Any) -> SimpleNamespace:
        asked.append(recipe)
        return SimpleNamespace(manifest=manifests.build(source=None, recipe=recipe))

    for name in ("compile", "quantize"):
        monkeypatch.setattr(f"qcompiler.compiler.compile.{name}", run)
    return asked


@pytest.mark.parametrize("command", ["compile", "quantize"])
@pytest.mark.parametrize(
    ("flags", "recipe"),
    [
        ("--smooth-quant off", Recipe(smooth_quant=SmoothQuantTable(alpha="off"))),
        ("--smooth-quant auto", Recipe()),
        ("--smooth-quant 0.7", Recipe(smooth_quant=SmoothQuantTable(alpha=0.7))),
        ("--smooth-quant-insert", Recipe(smooth_quant=SmoothQuantTable(insert=True))),
        ("--smooth-quant 1 --smooth-quant-insert", Recipe(smooth_quant=SmoothQuantTable(alpha=1.0, insert=True))),
        ("--qfem off", Recipe(qfem=QfemTable(alpha="off"))),
        ("--qfem 6.5", Recipe(qfem=QfemTable(alpha=6.5))),
        ("--weight-clip off", Recipe(weight_clip="off")),
        ("--weight-clip mse", Recipe(weight_clip="mse")),
        ("--equalize", Recipe(equalize=True)),
        ("--io-types high-precision", Recipe(io_types="high-precision")),
        ("--io-types keep", Recipe(io_types="keep")),
        ("--precision auto", Recipe(precision="auto", target="tensorrt-rtx:sm89")),
        ("--precision auto:fp16,int8", Recipe(precision="auto:int8,fp16")),
        ("--precision auto:int8,fp8,fp16", Recipe(precision="auto:int8,fp8,fp16")),
    ],
)
def test_an_option_becomes_a_key_of_the_recipe(recipes: Recipes, command: str, flags: str, recipe: Recipe) -> None:
    assert main([command, "m.onnx", *flags.split()]) == 0
    assert recipes == [recipe]


FILE = """
precision = "auto:int8,fp16"
weight_clip = "off"
equalize = true
io_types = "high-precision"
[smooth_quant]
alpha = 0.4
convolutions = true
layers = { "down" = 0.8 }
[qfem]
alpha = 9.0
budget = 0.2
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(FILE, encoding="utf8")
    return path


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("--smooth 0.7", "--smooth-quant 0.7"),
        ("--smooth-insert", "--smooth-quant-insert"),
        ("--weight-method gptq", "--weight-only-method gptq"),
        ("--block-size 32", "--weight-only-block-size 32"),
        ("--weight-head float", "--weight-only-head float"),
        ("--weight-storage matmulnbits --target onnxruntime", "--weight-only-storage matmulnbits --target onnxruntime"),
    ],
)
def test_older_spellings_do_the_same_and_are_not_listed(
    recipes: Recipes, capfd: pytest.CaptureFixture[str], older: str, newer: str
) -> None:
    for flags in (older, newer):
        assert main(["compile", "m.onnx", "--precision", "int4-weight", *flags.split()]) == 0
    assert recipes[0] == recipes[1] != Recipe(precision="int4-weight")
    with pytest.raises(SystemExit):
        main(["compile", "--help"])
    listed = capfd.readouterr().out.split()
    assert newer.split()[0] in listed
    assert older.split()[0] not in listed


def test_options_that_are_not_given_leave_the_recipe_file_alone(recipes: Recipes, file: Path) -> None:
    assert main(["compile", "m.onnx", "--recipe", str(file)]) == 0
    assert recipes == [Recipe.from_toml(file)]


def test_options_stand_over_single_keys_of_the_tables(recipes: Recipes, file: Path) -> None:
    flags = (
        "--smooth-quant 0.6 --smooth-quant-insert --qfem auto --weight-clip mse --io-types keep --precision fp8".split()
    )
    assert main(["compile", "m.onnx", "--recipe", str(file), *flags]) == 0
    assert recipes == [
        Recipe(
            precision="fp8",
            weight_clip="mse",
            equalize=True,
            io_types="keep",
            smooth_quant=SmoothQuantTable(alpha=0.6, insert=True, convolutions=True, layers={"down": 0.8}),
            qfem=QfemTable(alpha="auto", budget=0.2),
        )
    ]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--smooth-quant much", "recipe key 'alpha' = 'much': allowed is"),
        ("--smooth-quant 1.5", "recipe key 'alpha' = 1.5: allowed is"),
        ("--smooth-quant nan", "recipe key 'alpha' = nan: allowed is"),
        ("--qfem 0.5", "recipe key 'alpha' = 0.5: allowed is"),
        ("--weight-clip mean", "there is no --weight-clip 'mean': "),
        ("--io-types fp16", "there is no --io-types 'fp16': "),
        ("--precision auto:int8,fp4", "'fp4' is not in it"),
        ("--precision auto:int8,int8", "a format is there twice"),
        ("--precision autos", "there is no --precision 'autos': did you mean 'auto'?"),
        ("--smoth-quant off", "unknown option or argument '--smoth-quant' (did you mean '--smooth-quant'?)"),
    ],
)
def test_a_wrong_value_is_answered_with_what_is_allowed(
    recipes: Recipes, capfd: pytest.CaptureFixture[str], flags: str, says: str
) -> None:
    assert main(["compile", "m.onnx", *flags.split()]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1
    assert recipes == []
