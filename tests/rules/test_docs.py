"""The documents tell the truth: generated pages are up to date, links and commands work, ids and keys are explained."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from docs import generate
from qcompiler.cli import main
from qcompiler.engines.audit import Kind
from qcompiler.errors import UsageError
from qcompiler.passes.base import Fact
from qcompiler.recipe import tables
from qcompiler.recipe.recipe import TABLES, Recipe
from qcompiler.recipe.tables import SafetyTable
from tests.kit import cases, manifests
from tests.kit.rewrite import check, check_skipped, check_untouched, model
from tests.kit.subjects import before

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "qcompiler"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("name", generate.PAGES)
def test_generated_page_is_up_to_date(name: str) -> None:
    written = (generate.FOLDER / name).read_text(encoding="utf8")
    assert written == generate.PAGES[name](), "run: python docs/generate.py"


def test_every_page_that_says_it_is_generated_is() -> None:
    said = {path.relative_to(generate.FOLDER).as_posix() for path in DOCUMENTS if _text(path).startswith(generate.NOTE)}
    assert said == set(generate.PAGES)


def test_the_list_of_files_is_up_to_date() -> None:
    assert _text(generate.ARCHITECTURE) == generate.architecture(), "run: python docs/generate.py"


def test_every_setting_is_on_the_page_of_the_recipe() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", _text(ROOT / "docs" / "reference" / "recipe.md"), re.DOTALL)
    assert Recipe.from_toml("\n".join(blocks)) == Recipe()
    kinds: list[type[Any]] = [Recipe, *TABLES.values()]
    for key in (key for kind in kinds for key in dataclasses.fields(kind) if key.metadata):
        assert any(f"# {key.metadata['help']}\n" in block for block in blocks), key.name


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_links_lead_to_files_and_headings(path: Path) -> None:
    broken = [link for link in _links(_text(path)) if not _leads_somewhere(path, link)]
    assert broken == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_commands_are_taken_by_the_command_line(path: Path) -> None:
    for line in _commands(_text(path)):
        words = shlex.split(line)[1:]
        if "--help" not in words and "--version" not in words:
            main._parser().parse_args(words)  # raises UsageError


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_commands_named_in_a_sentence_exist(path: Path) -> None:
    known = {Path(page).stem for page in generate.PAGES if page.startswith("reference/cli/")} - {"README"}
    named = {
        word for code in re.findall(r"`([^`\n]+)`", _text(path)) for word in re.findall(r"qcompiler ([a-z]+)", code)
    }
    assert named <= known


def test_every_document_is_reached_from_the_readme() -> None:
    reached = {ROOT / "README.md"}
    waiting = list(reached)
    while waiting:
        path = waiting.pop()
        near = {(path.parent / link.partition("#")[0]).resolve() for link in _links(_text(path)) if ".md" in link}
        waiting += near - reached
        reached |= near
    assert set(DOCUMENTS) <= reached


def test_the_index_names_every_page_written_by_hand() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in _links(_text(index))}
    written = {path for path in DOCUMENTS if path.is_relative_to(index.parent) and path != index}
    assert {path for path in written if not _text(path).startswith(generate.NOTE)} <= linked


def test_every_rule_of_a_plan_is_explained() -> None:
    explained = _spelled("methods/accuracy.md")
    rules = set(_rules())
    assert {"linear", "sensitive", "attention", "fp16-range", "island"} <= rules
    assert rules - explained == set()


def test_figures_of_the_safety_net_are_those_of_the_recipe() -> None:
    page, safety = _text(ROOT / "docs" / "methods" / "accuracy.md"), SafetyTable()
    for said in (
        f"`safety.target_sqnr_db` ({safety.target_sqnr_db:g} dB)",
        f"`safety.min_share` ({safety.min_share:g})",
        f"`safety.samples` ({safety.samples})",
    ):
        assert said in page


def test_every_finding_of_the_audit_is_explained() -> None:
    assert {kind.value for kind in Kind} <= _spelled("reference/engines.md")


def test_every_key_of_a_manifest_is_explained() -> None:
    assert set(manifests.build(source=None, recipe=Recipe())) <= _spelled("reference/manifest.md")


def test_every_fact_is_explained() -> None:
    assert {fact.value for fact in Fact} <= _spelled("develop/writing_passes.md")


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_files_named_in_documents_exist(path: Path) -> None:
    named = {one for one in re.findall(r"`([a-z_0-9./]+\.py)`", _text(path)) if one not in ("utils.py", "_x.py")}
    ours = named if path.parent == ROOT else {one for one in named if one.startswith(("qcompiler/", "tests/", "docs/"))}
    assert [one for one in ours if not (ROOT / one).exists() and not list(PACKAGE.rglob(one))] == []


def test_the_example_of_a_pass_is_a_pass() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", _text(ROOT / "docs" / "develop" / "writing_passes.md"), re.DOTALL)
    module = types.ModuleType("example")
    sys.modules[module.__name__] = module  # dataclasses look there for their annotations
    try:
        exec(compile(code, "writing_passes.md", "exec"), vars(module))  # our own document
        cancel = module.CancelNegations()
        graph, _ = check(cancel, model(("Neg", "x", "a"), ("Neg", "a", "b"), ("Relu", "b", "y")), ops=["Neg", "Relu"])
        assert graph.nodes[1].inputs[0].name == "x"
        check_skipped(cancel, model(("Neg", "x", "a"), ("Neg", "a", "y")), "output")
        check_untouched(cancel, model(("Neg", "x", "a"), ("Relu", "a", "y")))
    finally:
        del sys.modules[module.__name__]


def test_the_example_of_a_stage_is_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", _text(ROOT / "docs" / "develop" / "writing_stages.md"), re.DOTALL)
    module = types.ModuleType("example")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look there for their annotations
    for code in blocks:
        exec(compile(code, "writing_stages.md", "exec"), vars(module))  # our own document
        monkeypatch.setattr(tables, "ZerosTable", module.ZerosTable, raising=False)
    with pytest.raises(UsageError, match="below"):
        module.ZerosTable(below=2.0)
    standing = before("qfep", cases.prepared(tmp_path, "conv"))
    run, subject = standing.run, standing.subject
    assert run(module.zeros, subject, None) is subject
    assert run.records == {**run.records, "zeros": None}
    assert run(module.zeros, subject, module.ZerosTable(count=True, below=1.0)) is subject
    record: Any = run.records["zeros"]
    assert record["layers"]
    assert all(0 < one["zeros"] <= one["of"] for one in record["layers"])
    assert record["layers"][0]["node"] in module.zeros_section(record)
    assert module.zeros_section(None) == ""


def test_the_metric_of_the_accuracy_page_judges_a_model() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", _text(ROOT / "docs" / "methods" / "accuracy.md"), re.DOTALL)
    names: dict[str, Any] = {"held_out": lambda: [({"x": i}, i) for i in range(4)]}
    exec(compile(code, "accuracy.md", "exec"), names)  # our own document
    assert names["accuracy"](lambda feeds: [np.eye(4)[min(feeds["x"], 2)]]) == 0.75
    assert names["HIGHER_IS_BETTER"] is True


def _text(path: Path) -> str:
    return path.read_text(encoding="utf8")


def _spelled(document: str) -> set[str]:
    """Everything that stands in inline code in a page of docs/."""
    return set(re.findall(r"`([^`\n]+)`", _text(ROOT / "docs" / document)))


def _links(markdown: str) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", markdown, flags=re.DOTALL))
    return [link for link in found if not link.startswith(("http://", "https://", "mailto:"))]


def _leads_somewhere(path: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = path.parent / name if name else path
    if not target.exists():
        return False
    headings = re.findall(r"^#+ (.+)$", _text(target), re.MULTILINE) if anchor else []
    return not anchor or anchor in {_anchor(heading) for heading in headings}


def _anchor(heading: str) -> str:
    """As GitHub makes it: lower case, blanks to hyphens, no punctuation."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _commands(markdown: str) -> Iterator[str]:
    """Calls of qcompiler in fenced blocks; continued lines are joined, redirections and comments cut off."""
    for block in re.findall(r"```\w*\n(.*?)```", markdown, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"\s*(?:\$ |# )?(qcompiler [a-z][^>|]*)", line)
            if found and "[OPTIONS]" not in line:
                yield re.sub(r"\s#.*", "", found[1])


def _rules() -> Iterator[str]:
    """Rule ids in the sources: the literal that stands where a decision, refusal or verdict takes its id."""
    places = {"Refusal": 2, "refuse": 0, "Verdict": 0, "Decision": 3}
    for path in PACKAGE.glob("**/*.py"):
        for call in ast.walk(ast.parse(_text(path))):
            if not isinstance(call, ast.Call):
                continue
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            place = places.get(name)
            if place is None or len(call.args) <= place:
                continue
            yield from _literal(call.args[place])


def _literal(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    if isinstance(node, ast.JoinedStr):  # f"{dtype}-range"
        end = "".join(str(one.value) for one in node.values if isinstance(one, ast.Constant))
        yield from (f"{dtype}{end}" for dtype in ("fp16", "bf16"))
