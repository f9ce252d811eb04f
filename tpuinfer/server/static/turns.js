// What a turn of the conversation looks like.
//
// A turn is plain data, so that it can be remembered:
//   {role: "user", content}
//   {role: "assistant", content, reasoning, calls, stats, finish, error}
// calls: tool calls as the API has them. stats: {ttft, seconds, prompt, completion, first}.

import {element, render} from "./markdown.js";

const FINISH = {
  length: "cut at max_tokens or the context",
  stopped: "stopped",
  tool_calls: "calls a tool",
  content_filter: "filtered",
};

/** A turn that an answer will fill. */
export function emptyAnswer() {
  return {role: "assistant", content: "", reasoning: "", calls: [], stats: null};
}

/**
 * Add one chunk of a stream to the answer `turn`. Times are in seconds since the request was sent.
 */
export function addChunk(turn, chunk, seconds) {
  const choice = chunk.choices[0];
  const delta = choice?.delta ?? {};
  turn.content += delta.content ?? "";
  turn.reasoning += delta.reasoning_content ?? "";
  for (const call of delta.tool_calls ?? []) addCall(turn.calls, call);
  if (choice?.finish_reason) turn.finish = choice.finish_reason;
  const generated = chunk.usage?.completion_tokens ?? 0;
  const says = delta.content || delta.reasoning_content || delta.tool_calls;
  if (!turn.stats && (says || generated)) {
    turn.stats = {ttft: seconds, first: generated || 1, seconds: 0, prompt: null, completion: null};
  }
  if (!turn.stats) return;
  if (says) turn.stats.seconds = seconds - turn.stats.ttft;
  if (chunk.usage) {
    turn.stats.prompt = chunk.usage.prompt_tokens;
    turn.stats.completion = generated;
  }
}

/** A tool call comes in pieces: its name first, then its arguments bit by bit. */
function addCall(calls, piece) {
  const call = calls[piece.index ?? 0] ??= {
    id: "", type: "function", function: {name: "", arguments: ""},
  };
  call.id ||= piece.id ?? "";
  call.function.name += piece.function?.name ?? "";
  call.function.arguments += piece.function?.arguments ?? "";
}

/** "0.21 s to first token · 34.5 tokens/s · 25 + 120 tokens": what is known of it. */
export function statsLine(turn) {
  const parts = [];
  const {ttft, seconds, prompt, completion, first} = turn.stats ?? {};
  if (ttft !== undefined) parts.push(`TTFT ${ttft.toFixed(2)} s`);
  if (completion > first && seconds > 0) {
    parts.push(`${((completion - first) / seconds).toFixed(1)} tokens/s`);
  }
  if (completion) parts.push(`${prompt} prompt + ${completion} answer tokens`);
  if (FINISH[turn.finish]) parts.push(FINISH[turn.finish]);
  return parts.join(" · ");
}

/** What the API is told of the conversation so far; an answer that never came is left out. */
export function messages(system, turns) {
  const told = turns.filter((turn) => turn.content || turn.calls?.length).map((turn) => {
    const message = {role: turn.role, content: turn.content};
    if (turn.calls?.length) message.tool_calls = turn.calls;
    return message;
  });
  return system.trim() ? [{role: "system", content: system}, ...told] : told;
}

/**
 * The list item of a question. `resend(text)` is called with its edited text.
 */
export function questionView(turn, resend) {
  const item = element("li");
  item.className = "user";
  const text = element("div", [turn.content]);
  text.className = "text";
  const edit = action("Edit", () => editor(item, turn, resend), true);
  item.append(label("You"), text, bar([edit, action("Copy", () => turn.content)]));
  return item;
}

function editor(item, turn, resend) {
  const before = [...item.children];
  const area = element("textarea");
  area.value = turn.content;
  area.setAttribute("aria-label", "Edit message");
  area.rows = Math.min(12, turn.content.split("\n").length + 1);
  const cancel = () => {
    item.replaceChildren(...before);
    item.querySelector("button").focus();
  };
  const done = () => area.value.trim() && resend(area.value);
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      cancel();
    } else if (isSend(event)) {
      event.preventDefault();
      done();
    }
  });
  const send = action("Send again", done, true);
  send.classList.add("primary");
  item.replaceChildren(area, bar([send, action("Cancel", cancel)]));
  area.focus();
}

/** Enter without Shift, and not the Enter that ends a word of an input method. */
export function isSend(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}

/** {item, update}: the list item of an answer, and what shows the turn as it is now. */
export function answerView(turn, again) {
  const item = element("li");
  item.className = "assistant";
  const reasoning = element("details", [element("summary", ["Reasoning"]), element("div")]);
  const text = element("div");
  text.className = "text";
  const calls = element("pre");
  calls.className = "calls";
  calls.tabIndex = 0;
  const error = element("p");
  error.className = "error";
  error.setAttribute("role", "alert");
  const stats = element("span");
  stats.className = "stats";
  const repeat = action("Regenerate", again, true);
  repeat.dataset.last = "";
  const buttons = bar([action("Copy", () => turn.content), repeat, stats]);
  item.append(label("Assistant"), reasoning, text, calls, error, buttons);

  const update = () => {
    reasoning.hidden = !turn.reasoning;
    reasoning.lastElementChild.textContent = turn.reasoning;
    render(text, turn.content);
    calls.hidden = !turn.calls?.length;
    calls.textContent = (turn.calls ?? []).map(callText).join("\n");
    error.hidden = !turn.error;
    if (error.textContent !== (turn.error ?? "")) error.textContent = turn.error ?? "";
    repeat.textContent = turn.error ? "Retry" : "Regenerate";
    stats.textContent = statsLine(turn);
  };
  update();
  return {item, update};
}

/** A tool call as JSON; arguments that do not parse, or not yet, stay the text they are. */
function callText(call) {
  let given = call.function.arguments;
  try {
    given = JSON.parse(given);
  } catch {
    // Shown as text.
  }
  return JSON.stringify({name: call.function.name, arguments: given}, null, 2);
}

function label(who) {
  const made = element("span", [who]);
  made.className = "who";
  return made;
}

function bar(children) {
  const made = element("div", children);
  made.className = "actions";
  return made;
}

/** A button; what `act` returns, if it is a text, is copied. `idle`: not while an answer comes. */
function action(words, act, idle = false) {
  const button = element("button", [words]);
  button.type = "button";
  if (idle) button.dataset.idle = "";
  button.addEventListener("click", () => {
    const text = act();
    if (words === "Copy") copy(text, button);
  });
  return button;
}

/** Put `text` on the clipboard and say so on `button`. */
export async function copy(text, button) {
  const copied = await navigator.clipboard?.writeText(text).then(() => true, () => false)
    || copyFromPage(text);
  button.textContent = copied ? "Copied" : "Not copied";
  setTimeout(() => button.textContent = "Copy", 1500);
}

/** Without a secure context, as over plain HTTP, there is no clipboard but that of a selection. */
function copyFromPage(text) {
  const area = element("textarea");
  area.value = text;
  area.className = "away";
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  return copied;
}
