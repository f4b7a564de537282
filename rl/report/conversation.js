// A conversation: its messages, and what the model read and drew, token by token. Text reaches the page through `make` alone.
"use strict";
const KINDS = {
  t: ["trained", "drawn here: this alone is trained"],
  r: ["read again", "drawn in an earlier segment and read here"],
  c: ["content", "said by somebody: a user, a tool, a system text"],
  s: ["scaffold", "the form's own"],
};
const took = seconds => seconds < 0.01 ? show(1000 * seconds) + " ms" : show(seconds) + " s";

function conversation(one) {
  const parts = one.messages.map(message => drawMessage(one, message));
  if (one.segments.length) parts.push(...context(one));
  else parts.push(make("div", "this page holds no tokens of this conversation", "dim note"));
  return parts;
}
function spans(one) {
  const whole = new Map();
  for (const span of one.segments.flatMap(segment => segment.calls)) {
    // New weights may have cut a call: it begins where its first part does.
    const begun = whole.get(span[0]);
    whole.set(span[0], begun ? [span[0], begun[1], ...span.slice(2)] : span);
  }
  return whole;
}
function drawMessage(one, message) {
  const box = make("div", undefined, "message " + (message.role === "assistant" ? "model" : "other")), head = make("div", undefined, "dim");
  const said = [message.role === "assistant" ? "model" : message.role], span = spans(one).get(message.call);
  if (message.call !== undefined) said.push(`call ${message.call}`);
  if (span) said.push(`${counted(span[2] - span[1])} tokens`, `ended by ${span[4]}`, took(span[5]));
  if (message.record) said.push(message.record.name, took(message.record.seconds));
  head.append(make("span", said.join(" · ")));
  if (message.record && message.record.error) head.append(" ", make("span", message.record.error, "badge bad"));
  box.append(head);
  if (message.reasoning) box.append(make("pre", message.reasoning, "reasoning"));
  if (message.content || !(message.reasoning || message.calls.length)) box.append(make("pre", message.content || "(empty)"));
  for (const [name, given] of message.calls) {
    const call = make("pre", undefined, "called");
    call.append(make("b", name), " " + given);
    box.append(call);
  }
  box.append(...leftOut(message.left_out, one.step));
  return box;
}

// What the model read and drew, segment by segment.
function context(one) {
  const legend = make("div", undefined, "legend dim");
  legend.append(make("b", "tokens"), ...Object.entries(KINDS).map(([letter, [name, meaning]]) => {
    const entry = make("span", name, "kind-" + letter);
    entry.title = meaning;
    return entry;
  }));
  const parts = [legend], paint = painter(one), tell = teller(one);
  let drawn = 0;
  one.segments.forEach((segment, place) => {
    const trained = [...segment.kinds].filter(letter => letter === "t").length;
    const calls = segment.calls.map(span => span[0] + (span[3] === "edit" ? " (edit)" : "")).join(", ");
    const head = `segment ${place + 1} · epoch ${segment.epoch} · ${counted(segment.tokens.length)} tokens, ${counted(trained)} trained · calls ${calls}`;
    const box = make("pre", undefined, "context");
    segment.tokens.forEach((token, at) => {
      const letter = segment.kinds[at], piece = make("span", token, "token kind-" + letter);
      piece.title = KINDS[letter][0];
      if (letter === "t") {
        const span = segment.calls.find(call => at >= call[1] && at < call[2]);
        piece.title += (span ? ` by call ${span[0]}` : "") + tell(drawn);
        paint(piece, drawn++);
      }
      box.append(piece);
    });
    parts.push(make("div", head, "dim segment"), box);
  });
  return parts;
}
