"""Style sheet and script of the HTML report, as text that stands in the file itself."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--paper:#f6f7f9;--card:#fff;--ink:#1c2430;--dim:#64708a;--rule:#e3e7ee;--blue:#2f6fed;
--good:#0f8a5f;--poor:#c2410c;--second:#d97706;--int8:#2f6fed;--fp8:#7c4dff;--int4:#0891b2;--fp16:#9aa7bd;--bf16:#b59fcb;--fp32:#c9b38a}
@media(prefers-color-scheme:dark){:root{--paper:#12161d;--card:#1a202a;--ink:#e6eaf2;--dim:#94a0b8;--rule:#2b3442;
--blue:#6b9bff;--good:#3ecf95;--poor:#ff8a5c;--second:#f0a04b;--int8:#5b8cff;--fp8:#a48bff;--int4:#36b8d6;--fp16:#5d6a82;--bf16:#7d6a95;
--fp32:#8d7a52}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:28px;margin:0 0 8px;overflow-wrap:anywhere}h2{font-size:18px;margin:0 0 4px}
.dim,small{color:var(--dim)}p{margin:4px 0 12px;overflow-wrap:anywhere}
.chips span{display:inline-block;background:var(--card);border:1px solid var(--rule);border-radius:99px;
padding:2px 12px;margin:0 6px 6px 0;font-size:13px}
main>section{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:20px 22px;margin-top:18px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(290px,1fr));gap:14px;margin-top:18px}
.tile{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:14px 18px;
border-top:3px solid var(--rule)}.tile.good{border-top-color:var(--good)}.tile.poor{border-top-color:var(--poor)}
.tile h3{font-size:13px;font-weight:600;color:var(--dim);margin:0}
.tile b{display:block;font-size:25px;font-weight:650;line-height:1.35;font-variant-numeric:tabular-nums}
.tile small{display:block;overflow-wrap:anywhere}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:13.5px}
th{text-align:left;color:var(--dim);font-weight:600;border-bottom:1px solid var(--rule);padding:6px 12px 6px 0;
white-space:nowrap}td{border-bottom:1px solid var(--rule);padding:5px 12px 5px 0;vertical-align:top;
overflow-wrap:anywhere}
tr:last-child td{border-bottom:0}.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
code{font:12.5px/1.5 ui-monospace,"SF Mono",Menlo,Consolas,"Liberation Mono",monospace;overflow-wrap:anywhere}
td:has(>code){min-width:15em}.w{white-space:nowrap}
pre{font:12.5px/1.5 ui-monospace,Menlo,Consolas,monospace;overflow-x:auto;background:var(--paper);padding:14px;
border-radius:8px}
details{margin-top:10px}summary{cursor:pointer;color:var(--blue);font-size:14px;padding:2px 0}
input[type=search]{margin:8px 0;padding:6px 10px;border:1px solid var(--rule);border-radius:8px;background:var(--paper);
color:var(--ink);font:inherit;font-size:13px;width:260px}
.alarm,.warning,.holds{border-radius:8px;padding:10px 14px;margin:12px 0 0}
.alarm{background:color-mix(in srgb,var(--poor) 16%,transparent);color:var(--poor);font-weight:600}
.warning{background:color-mix(in srgb,#d9a400 16%,transparent)}
.holds{background:color-mix(in srgb,var(--good) 14%,transparent);color:var(--good)}
.verdict{font-weight:600}.fine{color:var(--good);font-weight:600;margin:0}
.bar{display:flex;height:34px;border-radius:8px;overflow:hidden;background:var(--rule)}
.bar i{font-style:normal;font-size:13px;font-weight:600;color:#fff;padding:6px 0;text-indent:10px;
white-space:nowrap;overflow:hidden}
.bar i.unconfirmed{background:var(--poor)}
.bar i.int8,.bar i.int8-weight{background:var(--int8)}.bar i.fp8{background:var(--fp8)}.bar i.int4,
.bar i.int4-weight{background:var(--int4)}
.bar i.fp16{background:var(--fp16)}.bar i.bf16{background:var(--bf16)}.bar i.fp32{background:var(--fp32)}
.strip{height:26px}.strip i{min-width:2px;padding:0}.legend{font-size:13px;color:var(--dim);margin:6px 0}
.legend i{display:inline-block;width:11px;height:11px;border-radius:3px;margin:0 6px 0 10px;background:var(--blue)}
.legend i.second{background:var(--second)}.legend i.int8{background:var(--int8)}.legend i.fp8{background:var(--fp8)}
.legend i.int4{background:var(--int4)}
.legend i.fp16{background:var(--fp16)}.legend i.bf16{background:var(--bf16)}.legend i.fp32{background:var(--fp32)}
em{font-style:normal;font-weight:600;font-size:12.5px}em.int8,em.int8-weight{color:var(--int8)}em.fp8{color:var(--fp8)}
em.int4,em.int4-weight{color:var(--int4)}em.fp16,em.bf16,em.fp32{color:var(--dim)}
.meter{width:120px;height:8px;background:var(--rule);border-radius:4px;margin-top:7px}
.meter i{display:block;height:8px;border-radius:4px;background:var(--blue)}
svg{width:100%;height:auto;display:block;margin-top:6px}.grid{stroke:var(--rule)}
.axis{fill:var(--dim);font-size:12px}.mid{text-anchor:middle}.end{text-anchor:end}
.line{fill:none;stroke:var(--blue);stroke-width:1.6;stroke-linejoin:round;opacity:.65}.dot{fill:var(--blue)}
.first{fill:var(--blue)}.second{fill:var(--second)}
.line.first,.line.second{fill:none}.line.second{stroke:var(--second)}
.exact{fill:var(--card);stroke:var(--blue);stroke-width:1.5}
.bad{fill:var(--poor)}.chosen{fill:var(--good)}.limit{stroke:var(--poor);stroke-dasharray:5 4;opacity:.7}
@media print{body{background:#fff}details>*{display:block}input{display:none}}
""".strip()

SCRIPT = """
for(const field of document.querySelectorAll('input[type=search]'))field.addEventListener('input',()=>{
const word=field.value.toLowerCase();
for(const row of field.nextElementSibling.querySelectorAll('tbody tr'))
row.hidden=!row.textContent.toLowerCase().includes(word)})
""".strip()
