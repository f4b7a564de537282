// What is drawn of the inspector's answers: the run's head, a line of the list, a rollout, a group. Nothing here asks the server.
"use strict";
const CELLS = [["step", "step"], ["task", "task"], ["reward", "reward"], ["advantage", "adv."], ["kl", "KL"], ["off_policy", "off-pol."], ["num_tokens", "tokens"]];
const ORDER_NAMES = {
  worst: "worst first", best: "best first", step: "step", task: "task", prompt: "prompt", status: "status", reward: "reward", advantage: "advantage", kl: "KL to reference",
  off_policy: "off-policy", masked: "masked", route_flips: "route flips", weight_lag: "weight lag", num_tokens: "length", segments: "segments",
};

function runLine(run) {
  const said = [make("b", run.state), ` · ${counted(run.total)} rollouts of ${counted(run.steps.step.length)} steps`];
  if (run.waiting) said.push(` · reading, ${counted(run.waiting)} steps to go`);
  if (run.unreadable) said.push(` · ${counted(run.unreadable)} torn lines are left out`);
  if (run.unsaved) said.push(` · the index stays in memory: ${run.unsaved}`);
  return said;
}
function drawRunCurve(steps) {
  const means = steps.step.map((step, place) => [step, number(steps.reward[place])]).filter(([, value]) => Number.isFinite(value));
  find("curve").style.display = means.length < 2 ? "none" : "";
  find("means").textContent = means.length < 2 ? "" : drawMeans(means);
}

// A line of the list.
function line(one, place, chosen, found) {
  const box = lineBox(place, chosen, found);
  if (!one) { box.classList.add("waits"); box.append(make("span", "…", "said")); return box; }
  for (const [name] of CELLS) {
    const cell = make("span", name === "task" ? one.task : show(one[name]), "cell " + name);
    if (name === "advantage" && number(one.advantage) !== 0) cell.classList.add(number(one.advantage) < 0 ? "minus" : "plus");
    box.append(cell);
  }
  box.append(...badgesOf({ reward_status: one.status, reward: one.reward, masked: one.masked, finish_reason: one.truncated ? "length" : "", ended: "" }));
  box.append(make("span", one.head || "(empty)", "said"));
  return box;
}
function columnHeads(order, down, sort) {
  const heads = CELLS.map(([name, text]) => {
    const button = makeButton(text + (order === name ? (down ? " ↓" : " ↑") : ""), () => sort(name));
    button.className = "cell " + name;
    button.setAttribute("aria-pressed", String(order === name));
    button.title = "order by " + ORDER_NAMES[name];
    return button;
  });
  return [...heads, make("span", "answer", "said")];
}

// A group side by side: samples with their rewards, advantages and answers.
function groupView(rollouts, chosen, mask, act) {
  const first = rollouts[0], scored = rollouts.filter(one => !isFailed(one)).map(one => number(one.reward));
  const mean = scored.reduce((sum, value) => sum + value, 0) / scored.length;
  const said = [`${rollouts.length} samples`, scored.length < rollouts.length ? `${rollouts.length - scored.length} without a reward` : "",
    scored.length ? `mean reward ${show(mean)}, ${show(Math.min(...scored))} to ${show(Math.max(...scored))}` : "",
    scored.length > 1 && Math.min(...scored) === Math.max(...scored) ? "no spread: nothing is learned from it" : ""];
  const grid = make("div", undefined, "group"), most = Math.max(...rollouts.map(one => Math.abs(number(one.advantage)) || 0), 1e-9);
  grid.setAttribute("role", "listbox");
  rollouts.forEach((one, place) => grid.append(sampleCard(one, place === chosen, most, mask, () => act(place))));
  return [...question(first), make("p", said.filter(Boolean).join(" · "), "dim"), grid];
}
function sampleCard(one, isChosen, most, mask, act) {
  const box = make("div", undefined, "card"), head = make("header"), advantage = number(one.advantage);
  box.setAttribute("role", "option");
  box.setAttribute("aria-selected", String(isChosen));
  const add = (name, value) => { const span = make("span", name + " ", "dim"); span.append(make("b", value)); head.append(span); };
  head.append(make("span", `sample ${one.sample_index}`), ...badgesOf(one));
  add("reward", show(one.reward));
  for (const [name, value] of Object.entries(one.reward_parts)) add(name, show(value));
  for (const [name, field] of [["advantage", "advantage"], ["KL", "kl"], ["off-policy", "off_policy"], ["tokens", "num_tokens"]]) add(name, show(one[field]));
  const scale = make("div", undefined, "advantage"), bar = make("span", undefined, advantage < 0 ? "minus" : "plus");
  scale.title = `advantage ${show(advantage)}`;
  bar.style.width = `${50 * Math.min((Math.abs(advantage) || 0) / most, 1)}%`;
  scale.append(bar);
  box.append(head, scale, ...(one.masked ? maskLine(one, mask) : []));
  if (isConversation(one)) box.append(...one.messages.slice(-4).map(message => drawMessage(one, message)));
  else box.append(make("pre", one.response_text || "(empty)"), ...leftOut(one.response_left_out, one.step));
  if (one.reward_detail) box.append(make("pre", one.reward_detail, "bad"));
  box.addEventListener("click", act);
  return box;
}
