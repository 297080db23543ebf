"""One HTML file that needs nothing else: no request, no font, no library. Made from the manifest alone.

Everything that comes from a model or a user is escaped. Long tables are folded, so that thousands of nodes
load at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from qcompiler.recipe.recipe import Recipe
from qcompiler.report import inputs, outliers, prediction, qfep, svg, tries, unknown, views, weight_only
from qcompiler.report.figures import (
    COMPUTING,
    QUANTIZED,
    STORING,
    audited,
    both_halves,
    broken,
    bytes_of,
    count,
    decibel,
    is_table,
    moved,
    number,
    percent,
    precision,
    ranges_line,
    score,
    seconds,
    short,
    size,
    spelled,
    verdict,
    warnings,
    words,
    work,
)
from qcompiler.report.page import OPEN_ROWS, code, fold, page, section, table
from qcompiler.report.search import front, rungs

Record = Mapping[str, Any]
LIMIT_DB = 12.0
VERDICTS = {"holds": "holds", "doubtful": "warning", "broken": "alarm"}
DOUBTFUL_DB = 20.0  # without a gate, an output below it is not to be trusted unseen, unless it decides as before


def render(manifest: Record) -> str:
    """The report as the text of an HTML file."""
    name = _title(manifest)
    parts = (
        _header(manifest, name),
        _tiles(manifest),
        _accuracy(manifest.get("verification")),
        prediction.prediction(manifest.get("prediction")),
        _macs(manifest.get("macs")),
        outliers.formats(manifest.get("plan") or ()),
        _drift(manifest.get("verification")),
        rungs.rungs(manifest.get("rungs") or (), manifest.get("goal")),
        _safety(manifest.get("safety")),
        front.front(manifest.get("front") or ()),
        tries.tries(manifest.get("tries") or ()),
        inputs.inputs(manifest.get("inputs")),
        outliers.activations(manifest.get("outliers") or (), manifest.get("qfem")),
        outliers.smooth_quant(manifest.get("smooth_quant")),
        qfep.qfep(manifest.get("qfep")),
        outliers.qfem(manifest.get("qfem")),
        outliers.llm_int8(manifest.get("llm_int8")),
        weight_only.weight_only(manifest.get("weight_only")),
        outliers.residuals(manifest.get("residuals") or ()),
        unknown.sections(manifest),
        _layers(manifest),
        _audit(manifest.get("audit")),
        _ranges(manifest.get("quantizers")),
        _passes(manifest.get("passes"), manifest.get("equivalence")),
        _environment(manifest),
    )
    return page(name, parts)


def inspection(found: Record) -> str:
    """What `inspect` found (`Inspection.to_json()`) as the text of an HTML file."""
    name = str(found.get("file") or "model")
    chips = "".join(f"<span>{escape(str(found[key]))}</span>" for key in ("target", "producer") if found.get(key))
    parts = [f'<header><h1>{escape(name)}</h1><p class="chips">{chips}</p></header>']
    if found.get("not_finite"):
        parts.append(f'<p class="alarm">{escape(str(found["not_finite"]))}</p>')
    parts.extend(f'<p class="warning">{escape(str(text))}</p>' for text in found.get("problems") or ())
    shown = ("file", "target", "producer", "not_finite", "problems")
    single = [key for key, value in found.items() if not is_table(value) and key not in shown]
    parts.append(section("The model", "", table(("what", ""), [_fact(key, found[key]) for key in single])))
    parts.append(outliers.spikes(found.get("spikes") or ()))
    parts.append(outliers.residuals(found.get("residuals") or ()))
    parts.extend(_records(key, found.get(key) or ()) for key in ("stays_float", "layers", "inputs", "outputs"))
    return page(name, parts)


def _fact(key: str, value: Any) -> tuple[str, str]:
    return escape(words(key)), escape(spelled(key, value))


def _records(key: str, records: Sequence[Record]) -> str:
    if not records:
        return ""
    columns = list(dict.fromkeys(itertools.chain.from_iterable(records)))
    cells = ([_value(column, record.get(column)) for column in columns] for record in records)
    figures = [i for i, column in enumerate(columns) if column in ("macs", "share")]
    body = table([words(column) for column in columns], cells, figures=figures, find=len(records) > OPEN_ROWS)
    return section(
        words(key).capitalize(), "", fold(f"{len(records)} row{'s' * (len(records) != 1)}", len(records), body)
    )


def _value(column: str, value: Any) -> str:
    return code(value) if column in ("node", "nodes", "input", "output") else escape(spelled(column, value))


def _title(manifest: Record) -> str:
    return str((manifest.get("source") or {}).get("name") or "model")


def _header(manifest: Record, name: str) -> str:
    target, recipe = manifest["target"], manifest["recipe"]
    engine = ":".join(filter(None, (target["engine"], ",".join(target["sms"]))))
    rest = f"rest in {target['high_precision']}"
    chips = (recipe["precision"], engine, rest, f"calibrated by {recipe['calibrator']}")
    data = manifest.get("data") or {}
    line = f"{data['feeds']} feeds of {data['name']}" if data.get("feeds") else "no calibration data"
    if manifest.get("ranges"):
        line += f"; {ranges_line(manifest['ranges'])}"
    if data.get("preprocess"):
        line += f" ({data['files']}: {data['preprocess']})"
    bars = _verdict(manifest)
    predicted = prediction.line(manifest.get("prediction"))
    if predicted:
        kind = "warning" if prediction.slower(manifest.get("prediction")) else "holds"
        bars += f'<p class="verdict {kind}">{escape(predicted)}</p>'
    if manifest.get("random_data"):
        bars += '<p class="alarm">Random data: the ranges and every accuracy figure here are meaningless.</p>'
    bars += "".join(f'<p class="warning">{escape(text)}</p>' for text in warnings(manifest))
    listed = "".join(f"<span>{escape(str(chip))}</span>" for chip in chips)
    head = f'<h1>{escape(name)}</h1><p class="chips">{listed}</p><p class="dim">{escape(line)}</p>'
    return f"<header>{head}</header>{bars}"


def _verdict(manifest: Record) -> str:
    """The first line of the page, where a verdict was given; that nothing was written, where a gate was missed."""
    found = manifest.get("verdict")
    kind = VERDICTS.get(str((found or {}).get("verdict")), "warning")
    bars = f'<p class="verdict {kind}">{escape(verdict(found))}</p>' if found else ""
    if manifest.get("missed"):
        bars += '<p class="alarm">Not accepted: no engine and no model was written, earlier ones stay as they were.</p>'
    return bars


def _tiles(manifest: Record) -> str:
    return f'<div class="tiles">{"".join(_tile(*tile) for tile in _figures(manifest))}</div>'


def _figures(manifest: Record) -> Iterable[tuple[str, str, str, str]]:
    """Tiles as (heading, figure, small print, class)."""
    found, recipe = manifest.get("verification") or {}, manifest["recipe"]
    if found.get("score"):
        most, drop = number(recipe.get("max_drop")), number(found["score"]["drop"])
        good = "" if most is None or drop is None else "good" if drop <= most else "poor"
        held = both_halves(found["score"])
        small = f"{moved(found['score'])} against float{', ' * bool(held)}{held}: {found['score']['name']}"
        yield "metric", score(found["score"]), small, good
    if found:
        value, varies = number(found["worst_sqnr_db"]), views.varying(found)
        asked, least = number(recipe.get("min_sqnr")), number(found["worst_varying_db"] if varies else value)
        good = "" if value is None else "good" if value >= (DOUBTFUL_DB if asked is None else asked) else "poor"
        good = "poor" if least is not None and least < DOUBTFUL_DB and asked is None else good
        good = "good" if good == "poor" and asked is None and views.decided(found, DOUBTFUL_DB) else good
        yield "SQNR", decibel(value), f"worst view, {views.judged_on(found)}{varies and '; '}{varies}", good
    if manifest.get("macs"):
        macs = manifest["macs"]
        small = (
            f"of {count(macs['total'])} multiply-accumulates{', confirmed by the engine' * bool(macs.get('confirmed'))}"
        )
        small += f"; {percent(macs['promised_share'])} were promised" if broken(macs) else ""
        yield "quantized", percent(macs["quantized_share"]), small, "poor" if broken(macs) else ""
    if manifest.get("audit"):
        audit = manifest["audit"]
        yield "confirmed by the engine", percent(audit["share"], 0), audited(audit), "good" if audit["ok"] else "poor"
    sizes = [("float", bytes_of(manifest.get("source")))]
    sizes.append(("engine", (manifest.get("engine") or {}).get("bytes")))
    if sizes[1][1] is None:
        sizes[1] = ("quantized", bytes_of((manifest.get("files") or {}).get("qdq")))
    if all(value is not None for _, value in sizes):
        before, after = (f"{what} {size(value)}" for what, value in sizes)
        yield "size", size(sizes[1][1]), f"{after}, {before}", ""
    timings = manifest.get("timings") or {}
    if timings:
        longest = sorted(timings.items(), key=lambda item: -item[1])[:2]
        told = [f"estimated {seconds(manifest['estimate']['seconds'])}"] if manifest.get("estimate") else []
        small = ", ".join((*told, *(f"{k} {seconds(v)}" for k, v in longest)))
        yield "time", seconds(sum(timings.values())), small, ""


def _tile(heading: str, figure: str, small: str, kind: str) -> str:
    content = f"<h3>{escape(heading)}</h3><b>{escape(figure)}</b><small>{escape(small)}</small>"
    return f'<section class="tile {kind}">{content}</section>'


def _accuracy(found: Record | None) -> str:
    if not found:
        return ""
    rows = ((code(name), *map(escape, rest)) for name, *rest in views.rows(found))
    failures = "".join(f'<p class="alarm">{escape(str(text))}</p>' for text in found["failures"])
    others = views.parts(found)
    note = f"{views.judged_on(found)}, float and quantized side by side in ONNX Runtime; the worst view counts."
    note += f" A few samples of other parts of the data: {others}." if others else ""
    return section("Accuracy", note, failures + table(views.COLUMNS, rows, figures=range(2, 8)))


def _macs(macs: Record | None) -> str:
    if not macs or not macs["total"]:
        return ""
    parts = sorted(macs["by_precision"].items(), key=lambda part: (part[0] not in QUANTIZED, -part[1]))
    shares = [(name, escape(precision(name)), value / macs["total"]) for name, value in parts]
    bar = "".join(
        f'<i class="{escape(name)}" style="width:{100 * share:.2f}%" title="{spoken}: {percent(share)}">'
        f"{spoken + ' ' + percent(share) if share > 0.08 else ''}</i>"
        for name, spoken, share in shares
    )
    note = f"{count(macs['total'])} multiply-accumulates: {work(macs)}"
    return section("Where the work is done", note, f'<div class="bar">{bar}</div>')


def _drift(found: Record | None) -> str:
    if not found or not found["layers"]:
        return ""
    drifting = [layer for layer in found["layers"] if layer["drifts"]]
    note = (
        f"SQNR of {len(found['layers'])} inner tensors against float. Red: layers that add much more than comes in. "
        f"{found.get('begins') or ('' if drifting else 'None does.')}"
    )
    suspects = found.get("suspects") or ()
    body = svg.drift(found["layers"], LIMIT_DB)
    if suspects:
        columns = ("most to blame", "op", "by itself", "at", "now", "with it exact", "share of the error")
        cells = (
            (
                code(one["node"]),
                escape(str(one["op"])),
                decibel(one["own_db"]),
                code(one["end"]),
                decibel(one["end_db"]),
                decibel(one["repaired_db"]),
                percent(one["share"], 0),
            )
            for one in suspects
        )
        body += table(columns, cells, figures=(2, 4, 5, 6))
    return section("Layer by layer", note, body)


def _safety(safety: Record | None) -> str:
    steps = (safety or {}).get("curve") or ()
    if not safety or not steps:
        return ""
    target, restored = number(safety.get("target_db")), safety.get("restored") or ()
    first, last = (decibel(step["sqnr_db"]) for step in (steps[0], steps[-1]))
    went = f"{len(restored)} groups of layers went back to high precision." if restored else "nothing had to go back."
    note = f"From everything quantized ({first}) to what was chosen ({last}): {went}"
    if safety.get("met") is False:
        note += f" The target of {decibel(target)} was not reached."
    return section("Safety net", note, svg.curve(steps, target) if len(steps) > 1 else "")


def _layers(manifest: Record) -> str:
    records = manifest.get("plan") or ()
    if not records:
        return ""
    total = max(sum(record["macs"] for record in records), 1)
    known = {layer["node"]: layer["sqnr_db"] for layer in (manifest.get("verification") or {}).get("layers") or ()}
    mismatches = (manifest.get("audit") or {}).get("mismatches") or ()
    missed = {one["node"] for one in mismatches if one["kind"] == "not-confirmed"}
    listed = [record for record in records if record["macs"] or record["precision"] in QUANTIZED]
    plain = [record for record in records if not (record["macs"] or record["precision"] in QUANTIZED)]
    columns = ("node", "op", "precision", "rule", "why", "MACs", "share", "SQNR here")
    cells = (
        (
            code(record["node"]),
            escape(str(record["op"])),
            f'<em class="{escape(str(record["precision"]))}">{escape(str(record["precision"]))}</em>'
            + ", not confirmed" * (record["node"] in missed),
            escape(str(record["rule"])),
            escape(str(record["why"])),
            count(record["macs"]),
            percent(record["macs"] / total),
            decibel(known.get(record["node"])),
        )
        for record in listed
    )
    computing, storing = (sum(record["precision"] in kind for record in records) for kind in (COMPUTING, STORING))
    note = f"{computing} of {len(records)} nodes compute in a quantized type."
    if storing:
        note = f"{note[:-1]}; {storing} compute in high precision with a weight that is stored in one."
    body = fold(
        f"{len(listed)} nodes that multiply", len(listed), table(columns, cells, figures=range(5, 8), find=True)
    )
    if plain:
        groups = itertools.groupby(sorted(plain, key=_group), key=_group)
        counted = ((*map(escape, key), str(len(list(members)))) for key, members in groups)
        body += fold(
            f"{len(plain)} other nodes, by operator",
            OPEN_ROWS + 1,
            table(("op", "precision", "rule", "nodes"), counted, figures=(3,)),
        )
    return section("Layers", note, body)


def _group(record: Record) -> tuple[str, str, str]:
    return str(record["op"]), str(record["precision"]), str(record["rule"])


def _audit(audit: Record | None) -> str:
    if not audit:
        return ""
    compiled = ", ".join(f"{nodes} {what}" for what, nodes in audit["compiled"].items()) or "nothing"
    note = f"Read back from the engine itself: {audited(audit)}. Compiled: {compiled}. {audit['kernels']} kernels."
    rows = ((escape(str(m["kind"])), code(m["node"]), escape(str(m["text"]))) for m in audit["mismatches"])
    fine = '<p class="fine">Every promise is kept.</p>'
    body = table(("kind", "node", "what"), rows) if audit["mismatches"] else fine
    return section("Engine audit", note, body)


def _ranges(quantizers: Sequence[Record] | None) -> str:
    if not quantizers:
        return ""
    rows = (
        (
            code(one["tensor"]),
            escape(str(one["dtype"])),
            short(one["amax"]),
            short(one["observed"]),
            _clip(one),
            escape(str(one["calibrator"])),
        )
        for one in quantizers
    )
    columns = ("tensor", "type", "range (amax)", "largest seen", "range / largest", "calibrator")
    body = table(columns, rows, figures=(2, 3), find=True)
    note = "What an activation may reach before it is clipped, and the largest magnitude that was seen."
    return section("Calibration", note, fold(f"{len(quantizers)} tensors", len(quantizers), body))


def _clip(one: Record) -> str:
    seen, amax = number(one["observed"]), number(one["amax"])
    if not seen or amax is None:
        return "–"
    share = amax / seen
    return f'<div class="meter" title="{percent(share)}"><i style="width:{min(100.0, 100 * share):.1f}%"></i></div>'


def _passes(records: Sequence[Record] | None, checked: Record | None) -> str:
    if not records:
        return ""
    cells = (
        (
            code(record["pass"]),
            str(record["changed"]),
            str(record["skipped"]),
            "undone" if record.get("undone") else _error(record["relative_error"]),
            seconds(record["seconds"]),
        )
        for record in records
    )
    columns = ("pass", "changed", "left alone", "relative error", "time")
    note = (
        "In order. The relative error is the largest move of any output that a float pass caused, against its maximum."
    )
    if checked is not None:
        why = f"; {checked['why']}" if checked["why"] else ""
        note += f" Checked on {checked['samples']} samples and {checked['made_up']} feeds that were made up{why}."
    return section(
        "Passes", note, fold(f"{len(records)} passes", len(records), table(columns, cells, figures=range(1, 5)))
    )


def _error(value: Any) -> str:
    figure = number(value)
    return "–" if figure is None else "0" if figure == 0 else f"{figure:.1e}"


def _environment(manifest: Record) -> str:
    facts = {"qcompiler": manifest.get("qcompiler"), **(manifest.get("environment") or {})}
    source, engine = manifest.get("source") or {}, manifest.get("engine") or {}
    facts.update({"model": f"{source.get('name')} sha256 {source.get('sha256')}"} if source else {})
    if manifest.get("export"):
        facts["exported"] = f"{manifest['export']['kind']}, off by {manifest['export']['error']:.1e} from torch"
    facts.update({"engine": f"{engine.get('file')} sha256 {engine.get('sha256')}"} if engine else {})
    fingerprint = (manifest.get("data") or {}).get("fingerprint")
    facts.update({"data": f"fingerprint {fingerprint}"} if fingerprint else {})
    facts.update({"peak memory": f"{manifest['peak_memory_mb']} MiB"} if manifest.get("peak_memory_mb") else {})
    facts_table = table(("what", "which"), ((escape(str(k)), escape(str(v))) for k, v in facts.items()))
    recipe = f"<pre>{escape(Recipe.from_dict(manifest['recipe']).to_toml())}</pre>"
    folded = fold("versions and checksums", OPEN_ROWS + 1, facts_table) + fold("recipe", OPEN_ROWS + 1, recipe)
    return section("Made with", "", folded)
