// Drawn tokens by their values: what can be looked at, its colour, its scale, its words.
"use strict";
const TOKENS_DRAWN = 20000;
const SURPRISE_NATS = 5;
const EXPERTS_KEPT = 64;
const ROLES = { t: "in the loss", m: "masked", o: "not in the loss" };
const ROLE_HUES = { t: 145, m: 10, o: 220 };
let colour = "";
let layer = 0;

// Each with a value for every drawn token, or none where the run did not store it.
const COLOURS = {
  log_ratios: { name: "log-ratio to the sampler", short: "log-ratio", unit: " nats", scale: "signed" },
  sampler_logprobs: { name: "surprise of the sampler", short: "log-probability", unit: " nats", scale: "surprise" },
  entropies: { name: "entropy of the learner", short: "entropy", unit: " nats", scale: "amount", hue: 190 },
  kl_tokens: { name: "KL to reference", short: "KL", unit: " nats", scale: "amount", hue: 265 },
  roles: { name: "trained or not", short: "", unit: "", scale: "role" },
  weight_versions: { name: "weight version", short: "weights", unit: "", scale: "class" },
  support_sizes: { name: "support size", short: "support", unit: "", scale: "support" },
  experts: { name: "experts of a layer", short: "experts", unit: "", scale: "class" },
};
const TOLD = ["sampler_logprobs", "kl_tokens", "log_ratios", "entropies", "support_sizes", "weight_versions", "roles", "experts"];

function valuesFor(one, id) {
  if (id === "roles") return [...(one.roles || "")];
  if (id === "weight_versions") return (one.weight_versions || []).flatMap(([version, count]) => Array(count).fill(version));
  if (id === "experts") return one.routes && one.routes.chosen ? one.routes.chosen[Math.min(layer, one.routes.chosen.length - 1)] : [];
  return one[id] || [];
}
const liveExperts = (one, place) => one.routes && one.routes.live ? one.routes.live[Math.min(layer, one.routes.live.length - 1)][place] : undefined;
const classOf = value => Array.isArray(value) ? value[0] : value;

// A colour on light paper and its fellow on dark; text on it is INK.
const tone = (hue, saturation, light, dark) => `light-dark(hsl(${hue} ${saturation}% ${light}%), hsl(${hue} ${0.75 * saturation}% ${dark}%))`;
const INK = "light-dark(#111, #f4f4f4)";
// CSS colour of a value; `limit` is the largest of the rollout, and what is no number has none.
function shade(id, value, limit) {
  const { scale, hue } = COLOURS[id];
  if (scale === "role") return tone(ROLE_HUES[value], 55, 82, 30);
  if (scale === "class") return classOf(value) < 0 ? "" : tone((classOf(value) * 137.508 + 40) % 360, 62, 80, 34);
  const amount = number(value);
  if (scale === "support") {
    const share = Math.min(Math.log(amount) / Math.log(Math.max(limit, 2)), 1);
    return amount === 0 ? tone(0, 0, 80, 42) : tone(30, 85, 94 - 34 * share, 17 + 23 * share);
  }
  if (Number.isNaN(amount)) return scale === "signed" ? "" : shade(id, 0, limit);
  const share = Math.min(Math.abs(amount) / limit, 1);
  if (scale === "signed") return tone(amount < 0 ? 215 : 10, 20 + 65 * share, 96 - 32 * share, 17 + 28 * share);
  if (scale === "surprise") return tone(130 - 130 * share, 75, 84, 28);
  return tone(hue, 80, 96 - 34 * share, 17 + 23 * share);
}
function limitOf(id, values) {
  if (COLOURS[id].scale === "surprise") return SURPRISE_NATS;
  return values.reduce((most, value) => Math.max(most, Math.abs(number(value)) || 0), 1e-9);
}
// Gives a piece the colour of the place-th drawn token, where one was chosen and its value is known.
function painter(one) {
  const values = colour ? valuesFor(one, colour) : [], limit = colour ? limitOf(colour, values) : 0;
  return (piece, place) => {
    if (place >= values.length) return;
    const paint = shade(colour, values[place], limit);
    piece.style.background = paint;
    if (paint) piece.style.color = INK;
    if (colour === "experts" && liveExperts(one, place)) piece.classList.add("flipped");
  };
}
function told(one, id, value, place) {
  if (id === "roles") return ROLES[value];
  if (id === "support_sizes") return value === 0 ? "support: the whole vocabulary" : `support ${counted(value)} token${value === 1 ? "" : "s"}`;
  if (id === "experts") {
    const live = liveExperts(one, place), of = `layer ${one.routes.layers[Math.min(layer, one.routes.layers.length - 1)]}: experts `;
    return of + (classOf(value) < 0 ? "not recorded" : value.join(", ")) + (live ? `, the live router takes ${live.join(", ")}` : "");
  }
  return `${COLOURS[id].short} ${show(value)}${COLOURS[id].unit}`;
}
// Gives the words for everything that is known of the place-th drawn token, each behind a comma.
function teller(one) {
  const stored = TOLD.map(id => [id, valuesFor(one, id)]).filter(([, values]) => values.length);
  return place => stored.filter(([, values]) => place < values.length).map(([id, values]) => ", " + told(one, id, values[place], place)).join("");
}

// Why a rollout has no values of a kind. Flips without experts are those of a mixture whose experts were too many to keep, or of a run of an earlier version.
function whyMissing(one, id) {
  if (id !== "experts") return "not stored";
  if (one.routes === undefined) return "in samepath inspect";
  return Number.isFinite(number(one.route_flips)) ? `not stored: kept up to ${EXPERTS_KEPT} a token over all layers` : "not stored";
}
// The choice of what colours tokens; `changed` draws anew.
function colourChoice(one, changed) {
  const label = make("label", "colour tokens by "), select = make("select");
  select.append(new Option(isConversation(one) ? "who made them" : "nothing", ""));
  for (const [id, { name }] of Object.entries(COLOURS)) {
    const option = new Option(name, id), stored = valuesFor(one, id).length > 0;
    if (!stored) option.text += ` (${whyMissing(one, id)})`;
    option.disabled = !stored && id !== colour;
    select.append(option);
  }
  select.value = colour;
  select.id = "colour";
  select.addEventListener("change", () => { colour = select.value; changed(); find("colour").focus(); });
  label.append(select);
  return colour === "experts" && one.routes && one.routes.layers ? [label, layerChoice(one, changed)] : [label];
}
function layerChoice(one, changed) {
  const label = make("label", "layer "), select = make("select");
  one.routes.layers.forEach((name, place) => {
    const flips = Object.keys(one.routes.live[place]).length;
    select.append(new Option(flips ? `${name}, ${flips} flips` : String(name), String(place)));
  });
  select.value = String(Math.min(layer, one.routes.layers.length - 1));
  select.id = "layer";
  select.addEventListener("change", () => { layer = Number(select.value); changed(); find("layer").focus(); });
  label.append(select);
  return label;
}
// What the colours mean, where there are any.
function legend(one) {
  const values = colour ? valuesFor(one, colour) : [];
  if (!values.length) return [];
  const box = make("div", undefined, "legend dim"), { name, scale, unit } = COLOURS[colour], limit = limitOf(colour, values);
  box.append(make("b", name));
  const swatch = (value, text) => { const piece = make("span", text, "token"); piece.style.background = shade(colour, value, limit); piece.style.color = INK; box.append(piece); };
  if (scale === "class" || scale === "role") {
    const different = [...new Set(values.map(classOf))].filter(value => scale === "role" || value >= 0).sort((a, b) => a - b);
    for (const value of different.slice(0, 16)) swatch(value, scale === "role" ? ROLES[value] : String(value));
    if (different.length > 16) box.append(`and ${different.length - 16} more`);
    if (colour === "experts") box.append("colour: the first of those chosen for the row that predicts the token", make("span", "framed: the live router takes others", "token flipped"));
  } else if (scale === "support") {
    swatch(0, "whole vocabulary");
    for (const value of [1, Math.round(Math.sqrt(limit)), limit].filter((value, place, all) => all.indexOf(value) === place && value >= 1)) swatch(value, counted(value));
  } else {
    for (const share of scale === "signed" ? [-1, -0.5, 0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1]) {
      const value = share * limit * (scale === "surprise" ? -1 : 1);
      swatch(value, limit <= 1e-9 ? "0" : show(value));
      if (limit <= 1e-9) break;
    }
    box.append(unit.trim());
  }
  return [box];
}
// A single answer: its text, or its tokens in their colours.
function answer(one) {
  const box = make("pre"), tokens = one.tokens;
  if (!colour || !tokens.length || valuesFor(one, colour).length !== tokens.length) {
    box.textContent = one.response_text || "(empty)";
    if (colour && one.response_text) box.append(make("div", "this page holds no values for the tokens of this answer", "dim"));
    return box;
  }
  const begins = new Map(), paint = painter(one), tell = teller(one), drawn = Math.min(tokens.length, TOKENS_DRAWN);
  one.segment_tokens.reduce((place, count, index) => (begins.set(place, index + 1), place + count), 0);
  for (let place = 0; place < drawn; place++) {
    if (begins.size > 1 && begins.has(place)) box.append(make("div", `segment ${begins.get(place)}`, "dim segment"));
    const piece = make("span", tokens[place], "token");
    paint(piece, place);
    piece.title = tell(place).slice(2);
    box.append(piece);
  }
  if (drawn < tokens.length) box.append(make("div", `… ${counted(tokens.length - drawn)} more tokens`, "dim"));
  return box;
}
