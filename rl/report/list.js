// The list of rollouts: only the lines in sight are in the page. The page of a run and its inspector share it.
"use strict";
const ROW_PX = 30;
const ROWS_BEYOND = 12;
const ROWS_DRAWN = 300;

// Makes the list as long as `count` lines.
function sizeList(count) {
  find("space").style.height = ROW_PX * count + "px";
}
// Draws the lines in sight of `count`, and some beyond, each made by `lineAt(place)`; returns the first place and the one behind the last.
function drawLines(count, lineAt) {
  const list = find("list"), first = Math.max(0, Math.floor(list.scrollTop / ROW_PX) - ROWS_BEYOND);
  const last = Math.min(count, first + ROWS_DRAWN, Math.ceil((list.scrollTop + list.clientHeight) / ROW_PX) + ROWS_BEYOND);
  find("window").style.top = ROW_PX * first + "px";
  find("window").replaceChildren(...Array.from({ length: Math.max(0, last - first) }, (_, offset) => lineAt(first + offset)));
  return [first, last];
}
// An empty line of the list.
function lineBox(place, chosen, count) {
  const box = make("div", undefined, "row");
  box.id = "row-" + place;
  box.setAttribute("role", "option");
  box.setAttribute("aria-selected", String(place === chosen));
  box.setAttribute("aria-posinset", String(place + 1));
  box.setAttribute("aria-setsize", String(count));
  return box;
}
// Brings the chosen line into sight and names it to those who cannot see it; −1: none is chosen.
function showChosen(place) {
  const list = find("list"), top = ROW_PX * place;
  if (place < 0) { list.removeAttribute("aria-activedescendant"); return; }
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + ROW_PX > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW_PX - list.clientHeight;
  list.setAttribute("aria-activedescendant", "row-" + place);
}
// Where a key leads from a place, of `count`; undefined for other keys.
function placeByKey(key, here, count) {
  const page = Math.max(1, Math.floor(find("list").clientHeight / ROW_PX) - 1), last = count - 1;
  const to = { ArrowDown: here + 1, ArrowUp: here - 1, PageDown: here + page, PageUp: here - page, Home: 0, End: last }[key];
  return to === undefined ? to : Math.max(0, Math.min(last, to));
}
