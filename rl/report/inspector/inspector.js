// The inspector: what is looked at stands in the address behind `#`, so that every view is a link.
"use strict";
const WINDOW = 100;
const LOOK_MS = 2000;
const TYPING_MS = 200;
const RANGES = ["step", "reward", "kl", "num_tokens", "off_policy"];
const CHOICES = ["truncated", "masked"];
const state = { run: null, asked: null, found: 0, total: 0, version: -1, lines: new Map(), windows: new Map(), chosen: -1, at: "", view: "list", group: "", prompt: "", order: "worst", down: false,
  one: null, members: [], member: 0, turn: 0 };
const wrong = { act: "", list: "", look: "" };
const nameOf = one => `${one.step}/${one.sample}/${one.group}`;

async function ask(path, asked) {
  const reply = await fetch("/api/" + path + "?" + new URLSearchParams(asked));
  const value = await reply.json();
  if (!reply.ok) throw new Error(value.error);
  return value;
}
// Runs an asynchronous act; what goes wrong is said at the head of the page until the next act of its kind goes well.
async function attempt(act, kind = "act") {
  try {
    await act();
    wrong[kind] = "";
  } catch (error) {
    wrong[kind] = error instanceof TypeError ? "The inspector does not answer: start it again with samepath inspect." : error.message;
  }
  find("problem").textContent = [...new Set([...Object.values(wrong), state.run ? state.run.problem : ""])].filter(Boolean).join(" ");
}

// Filters: between the fields of the page and what the server is asked.
function filters() {
  const asked = {};
  if (find("text").value) asked.text = find("text").value;
  if (find("task").value !== "") asked.task = find("task").value.slice(1);
  if (find("status").value === "not ok") asked.failed = "yes";
  else if (find("status").value) asked.status = find("status").value.slice(1);
  for (const name of RANGES) {
    const low = find(name + "-from").value, high = find(name + "-to").value;
    if (low !== "" || high !== "") asked[name] = `${low}..${high}`;
  }
  for (const name of CHOICES) if (find(name).value) asked[name] = find(name).value;
  if (state.group) { asked.group = state.group; }
  if (state.prompt) asked.prompt = state.prompt;
  if (state.order !== "worst") asked.order = state.order;
  if (state.down) asked.down = "yes";
  return asked;
}
function fill(asked) {
  find("text").value = asked.text || "";
  setChoice(find("task"), asked.task === undefined ? "" : "=" + asked.task);
  setChoice(find("status"), asked.failed === "yes" ? "not ok" : asked.status === undefined ? "" : "=" + asked.status);
  for (const name of RANGES) {
    const [low, high] = (asked[name] || "..").split("..");
    find(name + "-from").value = low;
    find(name + "-to").value = high || "";
  }
  for (const name of CHOICES) find(name).value = asked[name] || "";
  state.group = asked.group || "";
  state.prompt = asked.prompt || "";
  state.order = asked.order in ORDER_NAMES ? asked.order : "worst";
  state.down = asked.down === "yes";
}
// A choice that the run does not have yet, as a link may name it, becomes one.
function setChoice(select, value) {
  if (![...select.options].some(option => option.value === value)) select.append(new Option(value.slice(1) || "(unnamed)", value));
  select.value = value;
}
function fillChoices(run) {
  const keep = (id, first, names) => {
    const before = find(id).value;
    find(id).replaceChildren(...first, ...names.map(name => new Option(name || "(unnamed)", "=" + name)));
    setChoice(find(id), before);
  };
  keep("task", [new Option("any", "")], run.tasks);
  keep("status", [new Option("any", ""), new Option("without a reward", "not ok")], run.statuses);
}

// The address.
function remember(isStep) {
  const said = { ...filters(), ...(state.at ? { at: state.at } : {}), ...(state.view === "list" ? {} : { view: state.view }) };
  if (colour) said.colour = colour;
  if (colour === "experts") said.layer = String(layer);
  const address = "#" + new URLSearchParams(said);
  if (address !== location.hash) history[isStep ? "pushState" : "replaceState"](null, "", address);
}
async function follow() {
  const said = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  fill(said);
  colour = said.colour in COLOURS ? said.colour : "";
  layer = Math.max(0, Math.trunc(Number(said.layer)) || 0);
  state.at = said.at || "";
  state.view = ["rollout", "group"].includes(said.view) ? said.view : "list";
  await refresh(state.at);
}

// The list: only the lines in sight are in the page, and only windows of them are asked for.
// `at` is the rollout to stay with; `quiet` leaves what is shown of it as it is.
async function refresh(at, quiet) {
  const asked = filters(), turn = ++state.turn;
  const answer = await ask("rollouts", { ...asked, first: 0, count: WINDOW, ...(at ? { at } : {}) });
  if (turn !== state.turn) return;
  Object.assign(state, { asked, found: answer.found, total: answer.total, version: answer.version, lines: new Map(), windows: new Map([[0, null]]) });
  answer.rollouts.forEach((one, place) => state.lines.set(place, one));
  find("count").textContent = `${counted(answer.found)} of ${counted(answer.total)} rollouts`;
  drawOnly();
  drawOrder();
  sizeList(state.found);
  if (!at) find("list").scrollTop = 0;
  const place = at && answer.at !== undefined ? answer.at : state.found ? 0 : -1;
  if (quiet && at) { state.chosen = place; drawRows(); return; }
  // A rollout that a link names is shown, although the filters may leave it out.
  if (at && place < 0) { state.chosen = -1; drawRows(); await showOne(at); return; }
  await choose(place);
}
async function fetchLines(first, last) {
  const asked = [];
  for (let start = Math.floor(first / WINDOW) * WINDOW; start < last; start += WINDOW) {
    if (!state.windows.has(start)) state.windows.set(start, fetchWindow(start));
    asked.push(state.windows.get(start));
  }
  await Promise.all(asked);
}
async function fetchWindow(start) {
  const { version, turn, windows } = state;
  try {
    const answer = await ask("rollouts", { ...state.asked, first: start, count: WINDOW });
    if (turn !== state.turn) return;
    // The run has gone on: the list is another.
    if (answer.version !== version) { await refresh(state.at, true); return; }
    answer.rollouts.forEach((one, place) => state.lines.set(start + place, one));
    drawRows();
  } catch (error) {
    windows.delete(start);
    throw error;
  }
}
function drawRows() {
  const [first, last] = drawLines(state.found, place => {
    const row = line(state.lines.get(place), place, state.chosen, state.found);
    row.addEventListener("click", () => attempt(() => choose(place)));
    return row;
  });
  if (last > first && !(state.lines.has(first) && state.lines.has(last - 1))) attempt(() => fetchLines(first, last), "list");
}
async function choose(place) {
  state.chosen = place;
  showChosen(place);
  drawRows();
  if (place < 0) { state.one = null; state.at = ""; draw(); remember(false); return; }
  if (!state.lines.get(place)) await fetchLines(place, place + 1);
  const one = state.lines.get(place);
  if (!one || state.chosen !== place) return;
  await showOne(nameOf(one));
}
function drawOnly() {
  const text = state.group ? "only group " + state.group : state.prompt ? "only one prompt" : "";
  find("only").replaceChildren(...(text ? [makeButton(text + " ✕", () => { state.group = state.prompt = ""; attempt(() => refresh(state.at)); })] : []));
}
function drawOrder() {
  find("order").value = state.order;
  find("down").textContent = state.down ? "↓" : "↑";
  find("down").hidden = ["worst", "best"].includes(state.order);
  find("columns").replaceChildren(...columnHeads(state.order, state.down, sortBy));
}
function sortBy(name) {
  // Numbers begin with the largest, names and steps with the first.
  state.down = state.order === name ? !state.down : !["step", "task", "prompt", "status"].includes(name);
  state.order = name;
  attempt(() => refresh(""));
}

// One rollout, or its group.
async function showOne(at) {
  const [step, sample, ...rest] = at.split("/"), name = { step, group: rest.join("/") };
  state.at = at;
  const turn = state.turn;
  if (state.view === "group") {
    const { rollouts } = await ask("group", name);
    if (turn !== state.turn || state.at !== at) return;
    state.members = rollouts;
    state.member = Math.max(0, rollouts.findIndex(one => String(one.sample_index) === sample));
  } else {
    const one = await ask("rollout", { ...name, sample });
    if (turn !== state.turn || state.at !== at) return;
    state.one = one;
  }
  draw();
  remember(false);
}
function draw() {
  find("main").className = state.view === "list" ? "" : "wide";
  document.body.className = state.view === "list" ? "listed" : "alone";
  const box = find("detail"), way = make("div", undefined, "path");
  if (state.view !== "list") way.append(makeButton("← list (Esc)", () => attempt(() => view("list"))));
  if (state.view === "group" && state.members.length) {
    way.append(make("b", `step ${state.members[0].step}, group ${state.members[0].group_id}`));
    box.replaceChildren(way, ...groupView(state.members, state.member, state.run.mask, place => { moveInGroup(place - state.member); attempt(() => view("rollout")); }));
    return;
  }
  if (!state.one) { box.replaceChildren(make("p", state.total ? "No rollout passes these filters." : "This run has no rollout yet.", "dim")); return; }
  const bar = make("div", undefined, "tools"), one = state.one;
  const only = (text, group, prompt) => makeButton(text, () => { Object.assign(state, { group, prompt }); attempt(() => refresh(state.at)); });
  bar.append(makeButton("its group (g)", () => attempt(() => view("group"))), only("its group alone", one.group_id, ""), only("this prompt alone", "", String(one.prompt.number)),
    ...colourChoice(one, () => { draw(); remember(false); }));
  box.replaceChildren(way, ...question(one), bar, card(one, state.run.mask), makeButton("how the best answer to this prompt changes over the steps", event => attempt(() => showChanges(event.target))));
  if (state.view === "list") box.scrollTop = 0;
}
async function showChanges(button) {
  const { best, left_out } = await ask("history", { prompt: state.one.prompt.number });
  button.replaceWith(...(left_out ? [make("p", `${counted(left_out)} earlier steps are left out.`, "dim")] : []), ...changes(best));
}
async function view(name) {
  state.view = name;
  if (!state.at) { draw(); return; }
  remember(true);
  await showOne(state.at);
  if (name === "list") { showChosen(state.chosen); drawRows(); find("list").focus({ preventScroll: true }); }
}
function moveInGroup(by) {
  state.member = Math.max(0, Math.min(state.members.length - 1, state.member + by));
  const one = state.members[state.member];
  state.at = `${one.step}/${one.sample_index}/${one.group_id}`;
  document.querySelectorAll(".group > .card").forEach((node, place) => {
    node.setAttribute("aria-selected", String(place === state.member));
    if (place === state.member) node.scrollIntoView({ block: "nearest" });
  });
  remember(false);
}

// Keys.
const LETTERS = { j: "ArrowDown", k: "ArrowUp" };
function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "Escape" && typing) { event.target.blur(); find("list").focus({ preventScroll: true }); return; }
  if (typing || find("keys").open) return;
  const act = {
    Escape: () => view("list"), Enter: () => view("rollout"), g: () => view("group"), "/": () => find("text").focus(), "?": () => find("keys").showModal(),
    c: () => { const ids = ["", ...Object.keys(COLOURS).filter(id => state.one && valuesFor(state.one, id).length)]; colour = ids[(ids.indexOf(colour) + 1) % ids.length]; draw(); remember(false); },
  }[event.key];
  // A button that has the focus takes Enter itself.
  if (act && !(event.key === "Enter" && event.target.tagName === "BUTTON")) { event.preventDefault(); attempt(async () => act()); return; }
  const key = LETTERS[event.key] || event.key, to = placeByKey(key, state.chosen, state.found), steps = { ArrowDown: 1, ArrowUp: -1 }[key];
  if (to === undefined || state.found === 0) return;
  if (state.view === "group" && !steps) return;
  if (state.view === "rollout" && !(event.key in LETTERS)) return;
  event.preventDefault();
  if (state.view === "group") moveInGroup(steps);
  else attempt(() => choose(to));
}

// The run goes on: its new steps join the list, and what is looked at stays.
async function look() {
  const run = await ask("run", {});
  const changed = !state.run || run.version !== state.run.version;
  state.run = run;
  document.title = "Rollouts of " + run.name;
  find("name").textContent = "Rollouts of " + run.name;
  find("run").replaceChildren(...runLine(run));
  if (!changed) return false;
  fillChoices(run);
  find("side").className = run.tasks.length > 1 ? "" : "one-task";
  drawRunCurve(run.steps);
  return true;
}
async function lookAgain() {
  await attempt(async () => {
    if (await look()) await refresh(state.at, true);
  }, "look");
  setTimeout(lookAgain, LOOK_MS);
}
let typing = 0;
function whenTyped() {
  clearTimeout(typing);
  typing = setTimeout(() => attempt(() => refresh("")), TYPING_MS);
}
find("order").append(...Object.entries(ORDER_NAMES).map(([value, text]) => new Option(text, value)));
for (const id of ["text", ...RANGES.flatMap(name => [name + "-from", name + "-to"])]) find(id).addEventListener("input", whenTyped);
for (const id of ["task", "status", ...CHOICES]) find(id).addEventListener("change", () => attempt(() => refresh("")));
find("order").addEventListener("change", () => { state.order = find("order").value; state.down = false; attempt(() => refresh("")); });
find("down").addEventListener("click", () => { state.down = !state.down; attempt(() => refresh("")); });
find("reset").addEventListener("click", () => { fill({}); attempt(() => refresh(state.at)); });
find("help").addEventListener("click", () => find("keys").showModal());
find("list").addEventListener("scroll", drawRows);
document.addEventListener("keydown", onKey);
window.addEventListener("resize", drawRows);
window.addEventListener("popstate", () => attempt(follow));
attempt(async () => { await look(); await follow(); find("list").focus({ preventScroll: true }); }).then(() => setTimeout(lookAgain, LOOK_MS));
