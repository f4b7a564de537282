"""The page of the rollout report: one HTML text without outside resources. Data is put in for the two `@…@` marks.

The script sets text through `textContent` only, so nothing a model wrote can become markup; the page's security policy
forbids requests of any kind.
"""

PAGE = r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@TITLE@</title>
<style>
:root { --bg:#fff; --fg:#1c2430; --dim:#667085; --line:#d9dee7; --card:#f7f8fa; --accent:#2456c7; --good:#11734b;
 --bad:#b3261e; --add:#d3f1df; --del:#fbdcd9; }
@media (prefers-color-scheme: dark) { :root { --bg:#14181f; --fg:#e6e9ef; --dim:#98a2b3; --line:#323a47; --card:#1c222c;
 --accent:#8ab0ff; --good:#6fd3a2; --bad:#ff9b92; --add:#1d4a35; --del:#5a2724; } }
* { box-sizing:border-box; }
body { margin:0 auto; max-width:1400px; padding:20px 28px 60px; background:var(--bg); color:var(--fg);
 font:15px/1.5 system-ui,sans-serif; }
h1 { font-size:22px; margin:0 0 2px; } h2 { font-size:16px; margin:26px 0 8px; } .dim { color:var(--dim); }
.bar { display:flex; flex-wrap:wrap; gap:10px 16px; align-items:center; margin:14px 0; padding:10px 14px;
 border:1px solid var(--line); border-radius:8px; background:var(--card); }
select,button,input { font:inherit; color:inherit; background:var(--bg); border:1px solid var(--line); border-radius:6px;
 padding:3px 9px; } input[type=range] { width:220px; padding:0; }
button:focus-visible,select:focus-visible,input:focus-visible { outline:2px solid var(--accent); outline-offset:1px; }
pre { margin:0; white-space:pre-wrap; overflow-wrap:anywhere; font:13.5px/1.55 ui-monospace,monospace; }
.prompt { border-left:3px solid var(--accent); padding:8px 14px; background:var(--card); }
.card { border:1px solid var(--line); border-radius:8px; margin:10px 0; overflow:hidden; }
.card header { display:flex; flex-wrap:wrap; gap:4px 16px; padding:6px 14px; background:var(--card);
 border-bottom:1px solid var(--line); font-size:13.5px; } .card pre { padding:10px 14px; }
.card header b { font-variant-numeric:tabular-nums; } .badge { border-radius:5px; padding:0 7px; border:1px solid; }
.good { color:var(--good); } .bad { color:var(--bad); } ins { background:var(--add); text-decoration:none; }
del { background:var(--del); } .token { border-radius:2px; color:#111; }
svg { display:block; width:100%; height:70px; } svg path { fill:none; stroke:var(--accent); stroke-width:1.5; }
svg line { stroke:var(--dim); stroke-dasharray:3 3; }
</style>
</head>
<body>
<h1>@TITLE@</h1>
<div class="dim" id="summary"></div>
<svg id="curve" viewBox="0 0 1000 70" preserveAspectRatio="none" role="img" aria-label="Mean reward of each step"></svg>
<div class="bar">
 <button id="before" title="one step back (left arrow)">◀</button>
 <label>step <input type="range" id="step" min="0" value="0"></label> <b id="step-name"></b>
 <button id="after" title="one step on (right arrow)">▶</button>
 <label>prompt <select id="group"></select></label>
 <label>order <select id="order"><option value="reward">reward, best first</option><option value="advantage">advantage</option>
 <option value="kl">KL to reference</option><option value="num_tokens">length</option></select></label>
 <label>colour tokens by <select id="colour"><option value="">nothing</option>
 <option value="sampler_logprobs">surprise of the sampler</option><option value="kl_tokens">KL to reference</option></select></label>
</div>
<div id="question"></div>
<h2>Answers</h2>
<div id="answers"></div>
<h2>How the best answer to this prompt changes over the steps</h2>
<div id="history"></div>
<script type="application/json" id="data">@DATA@</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const find = id => document.getElementById(id);
const make = (tag, text, kind) => { const node = document.createElement(tag); if (kind) node.className = kind;
  if (text !== undefined) node.textContent = text; return node; };
const number = value => Number(value);
const show = (value, digits) => Number.isFinite(number(value)) ? number(value).toPrecision(digits || 3) : "–";
const promptKey = rollout => rollout.dataset + "\u0000" + rollout.prompt_text;
const failed = rollout => rollout.reward_status !== "ok";
const rank = (value) => Number.isFinite(number(value)) ? number(value) : -Infinity;
const order = { step: 0, group: 0 };

function groupsOf(step) {
  const groups = new Map();
  for (const rollout of step.rollouts) {
    if (!groups.has(rollout.group_id)) groups.set(rollout.group_id, []);
    groups.get(rollout.group_id).push(rollout);
  }
  return [...groups.values()];
}
function mean(rollouts) {
  const values = rollouts.map(rollout => number(rollout.reward)).filter(Number.isFinite);
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : NaN;
}
function sorted(rollouts, key) { return [...rollouts].sort((a, b) => rank(b[key]) - rank(a[key])); }

function colourOf(name, value, limit) {
  const share = Math.min(Math.abs(number(value)) / limit, 1);
  return name === "kl_tokens" ? `hsl(265 80% ${96 - 34 * share}%)` : `hsl(${130 - 130 * share} 75% 84%)`;
}
function answerText(rollout, colour) {
  const box = make("pre");
  const values = colour ? rollout[colour] : [];
  if (!colour || !rollout.tokens.length || values.length !== rollout.tokens.length) {
    box.textContent = rollout.response_text || "(empty)";
    if (colour && rollout.response_text) box.append(make("div", "no token values were kept for this answer", "dim"));
    return box;
  }
  const limit = colour === "kl_tokens" ? Math.max(...values.map(value => Math.abs(number(value))), 1e-9) : 5;
  rollout.tokens.forEach((token, index) => {
    const piece = make("span", token, "token");
    piece.style.background = colourOf(colour, values[index], limit);
    const kl = rollout.kl_tokens.length ? `, KL ${show(rollout.kl_tokens[index])} nats` : "";
    piece.title = `log-probability ${show(rollout.sampler_logprobs[index])} nats${kl}`;
    box.append(piece);
  });
  return box;
}
function card(rollout, colour) {
  const box = make("div", undefined, "card"), head = make("header");
  const add = (name, value) => { const span = make("span", name + " ", "dim"); const bold = make("b", value);
    bold.style.color = "var(--fg)"; span.append(bold); head.append(span); };
  head.append(make("span", "sample " + rollout.sample_index));
  if (failed(rollout)) head.append(make("span", rollout.reward_status, "badge bad"));
  add("reward", show(rollout.reward));
  for (const [name, value] of Object.entries(rollout.reward_parts)) add(name, show(value));
  add("advantage", show(rollout.advantage)); add("KL", show(rollout.kl)); add("off-policy", show(rollout.off_policy));
  add("route flips", show(rollout.route_flips)); add("weight lag", rollout.weight_lag); add("tokens", rollout.num_tokens);
  add("ended by", rollout.finish_reason || "–"); add("took", show(rollout.generate_s) + " s");
  if (rollout.masked) head.append(make("span", "masked as off-policy", "badge bad"));
  box.append(head, answerText(rollout, colour));
  if (rollout.reward_detail) { const why = make("pre", rollout.reward_detail, "bad"); box.append(why); }
  return box;
}
function difference(before, after) {
  const left = before.split(/(\s+)/).slice(0, 600), right = after.split(/(\s+)/).slice(0, 600);
  const table = Array.from({ length: left.length + 1 }, () => new Uint16Array(right.length + 1));
  for (let i = left.length - 1; i >= 0; i--) for (let j = right.length - 1; j >= 0; j--)
    table[i][j] = left[i] === right[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
  const box = make("pre"); let i = 0, j = 0;
  while (i < left.length || j < right.length) {
    if (i < left.length && j < right.length && left[i] === right[j]) { box.append(left[i]); i++; j++; }
    else if (i < left.length && (j === right.length || table[i + 1][j] >= table[i][j + 1])) box.append(make("del", left[i++]));
    else box.append(make("ins", right[j++]));
  }
  return box;
}
function drawHistory(key) {
  const box = find("history"); box.replaceChildren(); let previous = null, unchanged = 0;
  for (const step of data.steps) {
    const same = step.rollouts.filter(rollout => promptKey(rollout) === key);
    if (!same.length) continue;
    const best = sorted(same, "reward")[0];
    if (previous !== null && previous.response_text === best.response_text) { unchanged++; continue; }
    const part = make("div", undefined, "card"), head = make("header");
    head.append(make("b", "step " + step.step), make("span", "best reward " + show(best.reward)),
      make("span", `mean of ${same.length}: ` + show(mean(same)), "dim"));
    if (unchanged) head.append(make("span", `unchanged ${unchanged} times before`, "dim"));
    part.append(head, previous === null ? make("pre", best.response_text) : difference(previous.response_text, best.response_text));
    box.append(part); previous = best; unchanged = 0;
  }
  const note = unchanged ? `Unchanged in the ${unchanged} later steps that have this prompt.` : "";
  if (note) box.append(make("p", note, "dim"));
  if (box.children.length === 1) box.append(make("p", "This prompt occurs in one step only.", "dim"));
}
function draw() {
  const step = data.steps[order.step], groups = groupsOf(step);
  order.group = Math.min(order.group, groups.length - 1);
  find("step").value = order.step; find("step-name").textContent = step.step;
  find("group").replaceChildren(...groups.map((rollouts, index) => { const option = make("option",
    `${rollouts[0].group_id}: mean ${show(mean(rollouts))} · ${rollouts[0].prompt_text.slice(-60)}`); option.value = index; return option; }));
  find("group").value = order.group;
  const question = find("question"), box = find("answers"); question.replaceChildren(); box.replaceChildren();
  if (!groups.length) { box.append(make("p", "No rollouts were kept for this step.", "dim")); return; }
  const rollouts = groups[order.group], first = rollouts[0];
  const prompt = make("div", undefined, "prompt"); prompt.append(make("pre", first.prompt_text));
  question.append(prompt, make("div", `gold answer: ${first.gold || "none"} · data set: ${first.dataset || "–"}`, "dim"));
  for (const rollout of sorted(rollouts, find("order").value)) box.append(card(rollout, find("colour").value));
  drawHistory(promptKey(first));
}
function drawCurve() {
  const means = data.steps.map(step => mean(step.rollouts)), finite = means.filter(Number.isFinite);
  if (finite.length < 2) return;
  const low = Math.min(...finite), high = Math.max(...finite), span = high - low || 1;
  const points = means.map((value, index) => [1000 * index / (means.length - 1), 65 - 60 * (value - low) / span]);
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", points.filter(point => Number.isFinite(point[1])).map((point, index) => (index ? "L" : "M") + point.join(" ")).join(""));
  path.setAttribute("vector-effect", "non-scaling-stroke"); find("curve").append(path);
  find("summary").textContent += ` Mean reward ${show(means[0])} at the first and ${show(means[means.length - 1])} at the last step shown.`;
}
function move(by) { order.step = Math.max(0, Math.min(data.steps.length - 1, order.step + by)); draw(); }
find("summary").textContent = data.summary;
if (data.steps.length) {
  find("step").max = data.steps.length - 1; order.step = data.steps.length - 1;
  find("step").addEventListener("input", event => { order.step = number(event.target.value); draw(); });
  find("group").addEventListener("change", event => { order.group = number(event.target.value); draw(); });
  for (const id of ["order", "colour"]) find(id).addEventListener("change", draw);
  find("before").addEventListener("click", () => move(-1)); find("after").addEventListener("click", () => move(1));
  document.addEventListener("keydown", event => { if (event.target.tagName === "INPUT" || event.target.tagName === "SELECT") return;
    if (event.key === "ArrowLeft") move(-1); if (event.key === "ArrowRight") move(1); });
  drawCurve(); draw();
}
</script>
</body>
</html>
"""
