"""The page on which a person tries a served model: one self-contained document, no outside resources."""

from __future__ import annotations

import json
from typing import Any

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Try {{ info.name }}</title>
<style>
:root{--bg:#fbfbfa;--fg:#1d2126;--soft:#5b6470;--line:#d9dde2;--card:#fff;--accent:#0b6e5f;--bar:#0b6e5f22}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e8eaed;--soft:#9aa4af;--line:#2d333a;--card:#1b1f24;
--accent:#4fc3ae;--bar:#4fc3ae33}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}
main{max-width:46rem;margin:0 auto;padding:2.5rem 1.25rem}h1{font-size:1.5rem;margin:0 0 .25rem}
p{color:var(--soft);margin:.25rem 0 1.5rem}form,#out{background:var(--card);border:1px solid var(--line);
border-radius:10px;padding:1.25rem;margin-bottom:1.25rem}label{display:block;font-weight:600;margin-bottom:.4rem}
textarea{width:100%;min-height:6.5rem;padding:.7rem;border:1px solid var(--line);border-radius:8px;font:inherit;
background:var(--bg);color:var(--fg);margin-bottom:.8rem}input[type=file]{margin-bottom:.8rem;max-width:100%}
button{font:inherit;font-weight:600;border:0;border-radius:8px;padding:.6rem 1.2rem;background:var(--accent);
color:var(--bg);cursor:pointer}button:disabled{opacity:.5;cursor:wait}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
.row{display:grid;grid-template-columns:minmax(6rem,12rem) 1fr 4rem;gap:.75rem;align-items:center;padding:.25rem 0}
.track{background:var(--bar);border-radius:4px;height:.8rem}.fill{background:var(--accent);height:100%;border-radius:4px}
.number{text-align:right;font-variant-numeric:tabular-nums}.error{color:#c43d3d;white-space:pre-wrap}
img{max-width:14rem;max-height:14rem;display:block;margin-bottom:.8rem;border-radius:8px}a{color:var(--accent)}
</style></head><body><main>
<h1>{{ info.name }}</h1>
<p>{{ info.kind|capitalize }} of {{ info.modality }}. <a href="/docs">API</a> · <a href="/health">health</a> ·
<a href="/self-test">self-test</a></p>
<form id="form">
{% if info.modality == "image" %}
<label for="file">An image (at most {{ max_body_mb }} MiB)</label>
<input id="file" type="file" accept="image/*" required><img id="preview" alt="" hidden>
{% elif info.modality == "features" %}
<label for="field0">Numbers, separated by commas</label><textarea id="field0" required></textarea>
{% else %}{% for column in columns %}
<label for="field{{ loop.index0 }}">{{ column }}</label><textarea id="field{{ loop.index0 }}" required></textarea>
{% endfor %}{% endif %}
<button id="go">Predict</button></form>
<div id="out" aria-live="polite" hidden></div>
</main><script type="application/json" id="info">{{ data }}</script>
<script>
const info=JSON.parse(document.getElementById("info").textContent),out=document.getElementById("out");
const el=(tag,cls,text)=>{const n=document.createElement(tag);if(cls)n.className=cls;if(text!==undefined)n.textContent=text;return n};
const file=document.getElementById("file"),preview=document.getElementById("preview");
if(file)file.onchange=()=>{if(file.files[0]){preview.src=URL.createObjectURL(file.files[0]);preview.hidden=false}};
async function ask(){if(info.modality==="image"){const f=new FormData();f.append("files",file.files[0]);
return fetch("/predict/images",{method:"POST",body:f})}
const values=info.columns.map((_,i)=>document.getElementById("field"+i).value);
let row=values.length>1?values:values[0];
if(info.modality==="features")row=values[0].split(/[\\s,;]+/).filter(Boolean).map(Number);
return fetch("/predict",{method:"POST",headers:{"content-type":"application/json"},body:JSON.stringify({rows:[row]})})}
document.getElementById("form").onsubmit=async event=>{event.preventDefault();const go=document.getElementById("go");
go.disabled=true;out.hidden=false;out.replaceChildren(el("span","","…"));
try{const started=performance.now(),answer=await ask(),body=await answer.json(),took=performance.now()-started;
if(!answer.ok)throw new Error(typeof body.detail==="string"?body.detail:JSON.stringify(body.detail));
const p=body.predictions[0];out.replaceChildren();
if(p.probabilities){Object.entries(p.probabilities).sort((a,b)=>b[1]-a[1]).slice(0,8).forEach(([name,value])=>{
const row=el("div","row"),track=el("div","track"),fill=el("div","fill");fill.style.width=100*value+"%";track.append(fill);
row.append(el("strong","",name),track,el("span","number",(100*value).toFixed(1)+" %"));out.append(row)})}
else out.append(el("strong","","Prediction: "+Number(p.value).toPrecision(5)));
out.append(el("small","","answered in "+took.toFixed(0)+" ms"))}
catch(error){out.replaceChildren(el("div","error",error.message))}finally{go.disabled=false}};
</script></body></html>"""


def try_page(info: dict[str, Any], *, max_rows: int, max_body_mb: float) -> str:
    """The page for a bundle. All that comes from the bundle is escaped: class names are user data."""
    from jinja2 import Environment
    from markupsafe import Markup

    columns = info["input_columns"] if info["modality"] == "text" else ["features"]
    data = json.dumps({"modality": info["modality"], "columns": list(columns)}).replace("<", "\\u003c")
    template = Environment(autoescape=True).from_string(_PAGE)
    named = {**info, "name": info.get("name") or "model"}
    return template.render(info=named, columns=columns, max_rows=max_rows, max_body_mb=max_body_mb, data=Markup(data))
