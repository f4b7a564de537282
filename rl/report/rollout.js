// One rollout as a card, from a record of its fields; the page of a run and its inspector share it.
// Text that a model wrote reaches the page through `textContent` and `append` alone, so none of it can become markup.
"use strict";
const WORDS_COMPARED = 600;
const find = id => document.getElementById(id);
const number = value => value === "inf" ? Infinity : value === "-inf" ? -Infinity : Number(value);
const show = value => Number.isFinite(number(value)) ? String(Number(number(value).toPrecision(3))) : "–";
const counted = value => value.toLocaleString("en");
const isFailed = one => one.reward_status !== "ok" || !Number.isFinite(number(one.reward));
const isTruncated = one => one.finish_reason === "length" || ["tokens", "time"].includes(one.ended);
const isConversation = one => one.messages.length > 0;

function make(tag, text, kind) {
  const node = document.createElement(tag);
  if (kind) node.className = kind;
  if (text !== undefined) node.textContent = text;
  return node;
}
function makeButton(text, act) {
  const button = make("button", text);
  button.type = "button";
  button.addEventListener("click", act);
  return button;
}
function badgesOf(one) {
  const said = [];
  if (isFailed(one)) said.push(one.reward_status === "ok" ? "no reward" : one.reward_status);
  if (isTruncated(one)) said.push("truncated");
  if (one.masked) said.push("masked");
  return said.map(text => make("span", text, "badge bad"));
}
function leftOut(chars, step) {
  const file = `rollouts/step-${String(step).padStart(5, "0")}.jsonl`;
  return chars ? [make("div", `… ${counted(chars)} more characters in ${file}`, "dim note")] : [];
}
function question(one) {
  const box = make("div", undefined, "prompt");
  box.append(make("pre", one.prompt.text), ...leftOut(one.prompt.left_out, one.step));
  return [box, make("div", `gold answer: ${one.prompt.gold || "none"} · task: ${one.prompt.dataset || "–"}`, "dim")];
}
// `mask` is what the recipe says of the off-policy mask, where it is known.
function card(one, mask) {
  const box = make("div", undefined, "card"), head = make("header");
  const add = (name, value) => { const span = make("span", name + " ", "dim"); span.append(make("b", value)); head.append(span); };
  head.append(make("span", `step ${one.step}, ${one.group_id}, sample ${one.sample_index}`), ...badgesOf(one));
  add("reward", show(one.reward));
  for (const [name, value] of Object.entries(one.reward_parts)) add(name, show(value));
  for (const [name, field] of [["advantage", "advantage"], ["KL", "kl"], ["off-policy", "off_policy"], ["route flips", "route_flips"],
    ["weight lag", "weight_lag"], ["tokens", "num_tokens"]]) add(name, show(one[field]));
  if (one.segment_tokens.length > 1) add("segments", String(one.segment_tokens.length));
  if (one.problems.length) add("problems", one.problems.join(", "));
  add("ended by", [one.finish_reason || "–", ...(one.ended === "answer" ? [] : [one.ended])].join(", "));
  add("took", show(one.generate_s) + " s");
  box.append(head, ...maskLine(one, mask), ...legend(one));
  box.append(...(isConversation(one) ? conversation(one) : [answer(one), ...leftOut(one.response_left_out, one.step)]));
  if (one.reward_detail) box.append(make("pre", one.reward_detail, "bad"));
  return box;
}
// Why the mask took an answer out or kept it: its statistic beside δ.
function maskLine(one, mask) {
  const statistic = number(one.off_policy);
  if (!mask || mask.delta === undefined || !Number.isFinite(statistic)) return [];
  const above = statistic > mask.delta, negative = number(one.advantage) < 0;
  const why = !mask.enabled ? "the mask is off" : one.masked ? `advantage below 0 and ${mask.scope === "segment" ? "a segment" : "the mean"} above δ: masked`
    : above ? (negative ? "kept" : "above δ, but the advantage is not below 0: kept") : "not above δ: kept";
  const box = make("div", undefined, "mask dim"), gauge = make("span", undefined, "gauge"), bar = make("span", undefined, "fill"), tick = make("span", undefined, "tick");
  const whole = Math.max(2 * mask.delta, 1.1 * Math.abs(statistic));
  bar.style.width = `${(100 * Math.max(statistic, 0)) / whole}%`;
  if (above) bar.classList.add("over");
  tick.style.left = `${(100 * mask.delta) / whole}%`;
  gauge.append(bar, tick);
  box.append(gauge, make("span", `mean log(π_sampler/π) ${show(statistic)} nats a token, δ = ${show(mask.delta)}: ${why}`));
  return [box];
}

// The best answers to one prompt, records in the order of steps.
function changes(best) {
  const parts = [];
  let before = null, unchanged = 0;
  for (const one of best) {
    if (before === one.response_text) { unchanged++; continue; }
    const part = make("div", undefined, "card"), head = make("header");
    head.append(make("b", "step " + one.step), make("span", "best reward " + show(one.reward)));
    if (unchanged) head.append(make("span", `unchanged ${unchanged} times before`, "dim"));
    part.append(head, before === null ? make("pre", one.response_text) : difference(before, one.response_text));
    parts.push(part);
    before = one.response_text;
    unchanged = 0;
  }
  if (unchanged) parts.push(make("p", `Unchanged in the ${unchanged} later steps that have this prompt.`, "dim"));
  if (best.length < 2) parts.push(make("p", `${best.length ? "Only one step" : "No step"} here has an answer to this prompt with a reward.`, "dim"));
  return parts;
}
function difference(before, after) {
  const words = [before.split(/(\s+)/), after.split(/(\s+)/)], [left, right] = words.map(list => list.slice(0, WORDS_COMPARED));
  const table = Array.from({ length: left.length + 1 }, () => new Uint16Array(right.length + 1));
  for (let i = left.length - 1; i >= 0; i--) for (let j = right.length - 1; j >= 0; j--)
    table[i][j] = left[i] === right[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
  const box = make("pre");
  let i = 0, j = 0;
  while (i < left.length || j < right.length) {
    if (i < left.length && j < right.length && left[i] === right[j]) { box.append(left[i]); i++; j++; }
    else if (i < left.length && (j === right.length || table[i + 1][j] >= table[i][j + 1])) box.append(make("del", left[i++]));
    else box.append(make("ins", right[j++]));
  }
  if (words.some(list => list.length > WORDS_COMPARED)) box.append(make("div", "… only the beginnings are compared", "dim"));
  return box;
}

// Mean reward by step, pairs of [step, value], as a line.
function drawMeans(means) {
  const values = means.map(entry => entry[1]), low = Math.min(...values), span = Math.max(...values) - low || 1;
  const begin = means[0][0], width = means[means.length - 1][0] - begin;
  const points = means.map(([step, value]) => `${(1000 * (step - begin)) / width} ${65 - (60 * (value - low)) / span}`);
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", "M" + points.join("L"));
  path.setAttribute("vector-effect", "non-scaling-stroke");
  find("curve").replaceChildren(path);
  return `Mean reward ${show(values[0])} in step ${begin}, ${show(values[values.length - 1])} in step ${means[means.length - 1][0]}.`;
}
