// Text that a model wrote reaches the page through `textContent` and `append` alone, so none of it can become markup.
"use strict";
const ROW_PX = 30;
const ROWS_BEYOND = 12;
const WORDS_COMPARED = 600;
const data = JSON.parse(document.getElementById("data").textContent);
const { columns, prompts } = data;
const total = columns.step.length;
const find = id => document.getElementById(id);
const number = value => value === "inf" ? Infinity : value === "-inf" ? -Infinity : Number(value);
const show = value => Number.isFinite(number(value)) ? String(Number(number(value).toPrecision(3))) : "–";
const counted = value => value.toLocaleString("en");
const rewards = columns.reward.map(number);
const failed = index => columns.reward_status[index] !== "ok" || Number.isNaN(rewards[index]);
const truncated = index => columns.finish_reason[index] === "length" || ["tokens", "time"].includes(columns.ended[index]);
const promptOf = index => prompts[columns.prompt[index]];
const state = { shown: [], chosen: -1, group: "", prompt: -1 };

function make(tag, text, kind) {
  const node = document.createElement(tag);
  if (kind) node.className = kind;
  if (text !== undefined) node.textContent = text;
  return node;
}

// What is searched and how it is ordered.
const texts = new Map();
function textOf(index) {
  if (!texts.has(index)) {
    const prompt = promptOf(index);
    const said = columns.messages[index].flatMap(message => [message.content, message.reasoning, ...message.calls.flat()]);
    texts.set(index, [prompt.text, columns.response_text[index], prompt.gold, columns.reward_detail[index], ...said].join("\n").toLowerCase());
  }
  return texts.get(index);
}
const ORDERS = {
  worst: ["without a reward first, then the lowest reward; equals: latest step first",
    (a, b) => failed(b) - failed(a) || (failed(a) ? 0 : rewards[a] - rewards[b]) || columns.step[b] - columns.step[a]],
  best: ["highest reward first, without a reward last; equals: latest step first",
    (a, b) => failed(a) - failed(b) || (failed(a) ? 0 : rewards[b] - rewards[a]) || columns.step[b] - columns.step[a]],
  step: ["as they were made", (a, b) => columns.step[a] - columns.step[b]],
};
function orderBy(name) {
  if (ORDERS[name]) return ORDERS[name];
  const rank = index => { const value = number(columns[name][index]); return Number.isNaN(value) ? -Infinity : value; };
  return ["highest first, unknown last", (a, b) => (rank(a) === rank(b) ? 0 : rank(b) - rank(a))];
}
function limits(from, to) {
  const low = find(from).value, high = find(to).value;
  return { set: low !== "" || high !== "", low: low === "" ? -Infinity : Number(low), high: high === "" ? Infinity : Number(high) };
}
function wanted() {
  const steps = limits("step-from", "step-to"), reward = limits("reward-from", "reward-to"), words = find("text").value.toLowerCase();
  const task = find("task").value, status = find("status").value, cut = find("truncated").value, masked = find("masked").value;
  return index => columns.step[index] >= steps.low && columns.step[index] <= steps.high
    && (!reward.set || (!failed(index) && rewards[index] >= reward.low && rewards[index] <= reward.high))
    && (task === "" || promptOf(index).dataset === prompts[Number(task)].dataset)
    && (status === "" || (status === "not ok" ? failed(index) : columns.reward_status[index] === status.slice(1)))
    && (cut === "" || truncated(index) === (cut === "yes")) && (masked === "" || columns.masked[index] === (masked === "yes"))
    && (state.group === "" || columns.group_id[index] === state.group) && (state.prompt < 0 || columns.prompt[index] === state.prompt)
    && (words === "" || textOf(index).includes(words));
}

// The list: only the rows in sight are in the page.
function refresh() {
  const [note, compare] = orderBy(find("order").value);
  state.shown = Array.from({ length: total }, (_, index) => index).filter(wanted()).sort((a, b) => compare(a, b) || a - b);
  find("count").textContent = `${counted(state.shown.length)} of ${counted(total)} rollouts`;
  find("order-note").textContent = note;
  drawOnly();
  find("space").style.height = ROW_PX * state.shown.length + "px";
  find("list").scrollTop = 0;
  choose(state.shown.length ? 0 : -1);
}
function drawOnly() {
  const text = state.group ? "only group " + state.group : state.prompt >= 0 ? "only one prompt" : "";
  const button = make("button", text + " ✕");
  button.type = "button";
  button.addEventListener("click", () => { state.group = ""; state.prompt = -1; refresh(); });
  find("only").replaceChildren(...(text ? [button] : []));
}
function drawRows() {
  const list = find("list"), first = Math.max(0, Math.floor(list.scrollTop / ROW_PX) - ROWS_BEYOND);
  const last = Math.min(state.shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_PX) + ROWS_BEYOND);
  find("window").style.top = ROW_PX * first + "px";
  find("window").replaceChildren(...state.shown.slice(first, last).map((index, offset) => row(index, first + offset)));
}
function row(index, place) {
  const box = make("div", undefined, "row");
  box.id = "row-" + place;
  box.setAttribute("role", "option");
  box.setAttribute("aria-selected", String(place === state.chosen));
  box.setAttribute("aria-posinset", String(place + 1));
  box.setAttribute("aria-setsize", String(state.shown.length));
  box.append(make("span", "step " + columns.step[index], "step dim"), make("b", show(rewards[index]), "reward"), ...badges(index),
    make("span", columns.response_text[index].slice(0, 200) || "(empty)", "said"));
  box.addEventListener("click", () => choose(place));
  return box;
}
function badges(index) {
  const said = [];
  if (failed(index)) said.push(columns.reward_status[index] === "ok" ? "no reward" : columns.reward_status[index]);
  if (truncated(index)) said.push("truncated");
  if (columns.masked[index]) said.push("masked");
  return said.map(text => make("span", text, "badge bad"));
}
function choose(place) {
  state.chosen = place;
  const list = find("list"), top = ROW_PX * place;
  if (place >= 0 && top < list.scrollTop) list.scrollTop = top;
  if (place >= 0 && top + ROW_PX > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW_PX - list.clientHeight;
  drawRows();
  if (place >= 0) list.setAttribute("aria-activedescendant", "row-" + place);
  else list.removeAttribute("aria-activedescendant");
  drawDetail();
}
function moveByKey(event) {
  const page = Math.max(1, Math.floor(find("list").clientHeight / ROW_PX) - 1), last = state.shown.length - 1;
  const to = { ArrowDown: state.chosen + 1, ArrowUp: state.chosen - 1, PageDown: state.chosen + page, PageUp: state.chosen - page, Home: 0, End: last };
  if (!(event.key in to) || last < 0) return;
  event.preventDefault();
  choose(Math.max(0, Math.min(last, to[event.key])));
}

// One rollout.
function drawDetail() {
  const box = find("detail");
  box.replaceChildren();
  if (state.chosen < 0) { box.append(make("p", "No rollout passes these filters.", "dim")); return; }
  const index = state.shown[state.chosen], prompt = promptOf(index);
  const question = make("div", undefined, "prompt");
  question.append(make("pre", prompt.text), ...leftOut(prompt.left_out, index));
  box.append(question, make("div", `gold answer: ${prompt.gold || "none"} · task: ${prompt.dataset || "–"}`, "dim"), tools(index), card(index));
  box.append(make("h2", "How the best answer to this prompt changes over the steps"), ...history(columns.prompt[index]));
}
function leftOut(chars, index) {
  const file = `rollouts/step-${String(columns.step[index]).padStart(5, "0")}.jsonl`;
  return chars ? [make("div", `… ${counted(chars)} more characters in ${file}`, "dim note")] : [];
}
let colour = "";
function tools(index) {
  const bar = make("div", undefined, "tools"), label = make("label", "colour tokens by "), select = make("select");
  for (const [value, text] of [["", isConversation(index) ? "who made them" : "nothing"], ["sampler_logprobs", "surprise of the sampler"], ["kl_tokens", "KL to reference"]])
    select.append(new Option(text, value));
  select.value = colour;
  select.id = "colour";
  select.addEventListener("change", () => { colour = select.value; drawDetail(); find("colour").focus(); });
  label.append(select);
  const only = (text, group, prompt) => {
    const button = make("button", text);
    button.type = "button";
    button.addEventListener("click", () => { state.group = group; state.prompt = prompt; refresh(); });
    return button;
  };
  bar.append(only("its group alone", columns.group_id[index], -1), only("this prompt alone", "", columns.prompt[index]), label);
  return bar;
}
function card(index) {
  const box = make("div", undefined, "card"), head = make("header");
  const add = (name, value) => { const span = make("span", name + " ", "dim"); span.append(make("b", value)); head.append(span); };
  head.append(make("span", `step ${columns.step[index]}, ${columns.group_id[index]}, sample ${columns.sample_index[index]}`), ...badges(index));
  add("reward", show(rewards[index]));
  for (const [name, value] of Object.entries(columns.reward_parts[index])) add(name, show(value));
  for (const [name, column] of [["advantage", "advantage"], ["KL", "kl"], ["off-policy", "off_policy"], ["route flips", "route_flips"],
    ["weight lag", "weight_lag"], ["tokens", "num_tokens"]]) add(name, show(columns[column][index]));
  const segments = columns.segment_tokens[index].length;
  if (segments > 1) add("segments", String(segments));
  if (columns.problems[index].length) add("problems", columns.problems[index].join(", "));
  add("ended by", [columns.finish_reason[index] || "–", ...(columns.ended[index] === "answer" ? [] : [columns.ended[index]])].join(", "));
  add("took", show(columns.generate_s[index]) + " s");
  box.append(head, ...(isConversation(index) ? conversation(index) : [answer(index), ...leftOut(columns.response_left_out[index], index)]));
  if (columns.reward_detail[index]) box.append(make("pre", columns.reward_detail[index], "bad"));
  return box;
}
function answer(index) {
  const box = make("pre"), tokens = columns.tokens[index];
  if (!colour || !tokens.length || columns[colour][index].length !== tokens.length) {
    box.textContent = columns.response_text[index] || "(empty)";
    if (colour && columns.response_text[index]) box.append(make("div", "this page holds no values for the tokens of this answer", "dim"));
    return box;
  }
  const begins = new Map(), paint = painter(index);
  columns.segment_tokens[index].reduce((place, count, number) => (begins.set(place, number + 1), place + count), 0);
  tokens.forEach((token, place) => {
    if (begins.size > 1 && begins.has(place)) box.append(make("div", `segment ${begins.get(place)}`, "dim segment"));
    const piece = make("span", token, "token");
    paint(piece, place);
    piece.title = valuesOf(index, place).slice(2);
    box.append(piece);
  });
  return box;
}
// The place-th drawn token of a rollout: its colour, where one was chosen and its value is known, and its values as text.
function painter(index) {
  const values = colour ? columns[colour][index] : [];
  const limit = colour === "kl_tokens" ? values.reduce((most, value) => Math.max(most, Math.abs(number(value)) || 0), 1e-9) : 5;
  return (piece, place) => {
    if (place >= values.length) return;
    const share = Math.min((Math.abs(number(values[place])) || 0) / limit, 1);
    piece.style.background = colour === "kl_tokens" ? `hsl(265 80% ${96 - 34 * share}%)` : `hsl(${130 - 130 * share} 75% 84%)`;
    piece.style.color = "#111";
  };
}
function valuesOf(index, place) {
  const logprobs = columns.sampler_logprobs[index], kl = columns.kl_tokens[index];
  return (place < logprobs.length ? `, log-probability ${show(logprobs[place])} nats` : "") + (place < kl.length ? `, KL ${show(kl[place])} nats` : "");
}
function bestBySteps(prompt) {
  const best = new Map();
  for (let index = 0; index < total; index++) {
    if (columns.prompt[index] !== prompt || failed(index)) continue;
    const step = columns.step[index];
    if (!best.has(step) || rewards[index] > rewards[best.get(step)]) best.set(step, index);
  }
  return [...best].sort((a, b) => a[0] - b[0]).map(entry => entry[1]);
}
function history(prompt) {
  const parts = [];
  let before = null, unchanged = 0;
  const best = bestBySteps(prompt);
  for (const index of best) {
    const text = columns.response_text[index];
    if (before === text) { unchanged++; continue; }
    const part = make("div", undefined, "card"), head = make("header");
    head.append(make("b", "step " + columns.step[index]), make("span", "best reward " + show(rewards[index])));
    if (unchanged) head.append(make("span", `unchanged ${unchanged} times before`, "dim"));
    part.append(head, before === null ? make("pre", text) : difference(before, text));
    parts.push(part);
    before = text;
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

// The head of the page.
function drawCurve() {
  const sums = new Map();
  for (let index = 0; index < total; index++) {
    if (failed(index)) continue;
    const sum = sums.get(columns.step[index]) || [0, 0];
    sums.set(columns.step[index], [sum[0] + rewards[index], sum[1] + 1]);
  }
  const means = [...sums].sort((a, b) => a[0] - b[0]).map(([step, [sum, count]]) => [step, sum / count]);
  if (means.length < 2) { find("curve").remove(); return; }
  const values = means.map(entry => entry[1]), low = Math.min(...values), span = Math.max(...values) - low || 1;
  const begin = means[0][0], width = means[means.length - 1][0] - begin;
  const points = means.map(([step, value]) => `${(1000 * (step - begin)) / width} ${65 - (60 * (value - low)) / span}`);
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", "M" + points.join("L"));
  path.setAttribute("vector-effect", "non-scaling-stroke");
  find("curve").append(path);
  find("held").append(make("div", `Mean reward ${show(values[0])} in step ${begin}, ${show(values[values.length - 1])} in step ${means[means.length - 1][0]}.`));
}
function drawHeld() {
  for (const sentence of data.held) find("held").append(make("div", sentence));
  if (!data.which) return;
  const details = make("details");
  details.append(make("summary", "which steps are here"), make("span", data.which));
  find("held").append(details);
}
function fillChoices() {
  const tasks = [...new Set(prompts.map(prompt => prompt.dataset))].sort();
  find("task").append(new Option("any", ""),
    ...tasks.map(name => new Option(name || "(unnamed)", String(prompts.findIndex(prompt => prompt.dataset === name)))));
  const statuses = [...new Set(columns.reward_status)].sort();
  // A status may have any name, so the choices that are none stand apart from those that are.
  find("status").append(new Option("any", ""), new Option("without a reward", "not ok"), ...statuses.map(name => new Option(name, "=" + name)));
}
function showAll() {
  for (const id of ["text", "step-from", "step-to", "task", "status", "reward-from", "reward-to", "truncated", "masked"]) find(id).value = "";
  state.group = "";
  state.prompt = -1;
  refresh();
}
drawHeld();
drawCurve();
fillChoices();
for (const id of ["text", "step-from", "step-to", "reward-from", "reward-to"]) find(id).addEventListener("input", refresh);
for (const id of ["task", "status", "truncated", "masked", "order"]) find(id).addEventListener("change", refresh);
find("reset").addEventListener("click", showAll);
find("list").addEventListener("scroll", drawRows);
find("list").addEventListener("keydown", moveByKey);
window.addEventListener("resize", drawRows);
refresh();
