// The page of a run that needs no server: the list over data that stand in the page.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const { columns, prompts } = data;
const total = columns.step.length;
const rewards = columns.reward.map(number);
const failed = index => columns.reward_status[index] !== "ok" || !Number.isFinite(rewards[index]);
const truncated = index => columns.finish_reason[index] === "length" || ["tokens", "time"].includes(columns.ended[index]);
const promptOf = index => prompts[columns.prompt[index]];
const recordOf = index => ({ ...Object.fromEntries(Object.entries(columns).map(([name, column]) => [name, column[index]])), prompt: promptOf(index) });
const state = { shown: [], chosen: -1, group: "", prompt: -1 };

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
  sizeList(state.shown.length);
  find("list").scrollTop = 0;
  choose(state.shown.length ? 0 : -1);
}
function drawOnly() {
  const text = state.group ? "only group " + state.group : state.prompt >= 0 ? "only one prompt" : "";
  const button = makeButton(text + " ✕", () => { state.group = ""; state.prompt = -1; refresh(); });
  find("only").replaceChildren(...(text ? [button] : []));
}
function drawRows() {
  drawLines(state.shown.length, row);
}
function row(place) {
  const index = state.shown[place], box = lineBox(place, state.chosen, state.shown.length);
  box.append(make("span", "step " + columns.step[index], "step dim"), make("b", show(rewards[index]), "reward"), ...badgesOf(recordOf(index)),
    make("span", columns.response_text[index].slice(0, 200) || "(empty)", "said"));
  box.addEventListener("click", () => choose(place));
  return box;
}
function choose(place) {
  state.chosen = place;
  showChosen(place);
  drawRows();
  drawDetail();
}
function moveByKey(event) {
  const to = placeByKey(event.key, state.chosen, state.shown.length);
  if (to === undefined || state.shown.length === 0) return;
  event.preventDefault();
  choose(to);
}

// One rollout.
function drawDetail() {
  const box = find("detail");
  box.replaceChildren();
  if (state.chosen < 0) { box.append(make("p", "No rollout passes these filters.", "dim")); return; }
  const index = state.shown[state.chosen], one = recordOf(index);
  box.append(...question(one), tools(index, one), card(one));
  box.append(make("h2", "How the best answer to this prompt changes over the steps"), ...changes(bestBySteps(columns.prompt[index]).map(recordOf)));
}
function tools(index, one) {
  const bar = make("div", undefined, "tools");
  const only = (text, group, prompt) => makeButton(text, () => { state.group = group; state.prompt = prompt; refresh(); });
  bar.append(only("its group alone", columns.group_id[index], -1), only("this prompt alone", "", columns.prompt[index]), ...colourChoice(one, drawDetail));
  return bar;
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
  find("held").append(make("div", drawMeans(means)));
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
