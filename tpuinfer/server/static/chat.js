// The chat page: one conversation, streamed from the server that the page came from.

import * as api from "./api.js";
import {recall, recallKey, remember, rememberKey} from "./memory.js";
import {rate, reading, shortRate} from "./metrics.js";
import {changed, requestFields, settingsForm} from "./settings.js";
import {addChunk, answerView, copy, emptyAnswer, isSend, messages, questionView} from "./turns.js";

const POLL_MS = 2000;
const RECONNECT_SECONDS = 2;
const NEAR_BOTTOM = 64;
const STOPPED = "AbortError";

const at = Object.fromEntries([...document.querySelectorAll("[id]")].map((one) => [one.id, one]));
const {turns, settings, model: lastModel} = recall();
let model = lastModel;
let key = recallKey();
let running = null;
let asking = null;
let connecting = null;

// Conversation

function send(text) {
  turns.push({role: "user", content: text});
  showTurn(turns.at(-1));
  answer();
}

/** Ask for an answer to the turns there are, and fill a new turn with it. */
async function answer() {
  const turn = emptyAnswer();
  const told = messages(settings.system ?? "", turns);
  turns.push(turn);
  const update = showTurn(turn);
  const stop = new AbortController();
  running = {stop, update};
  setBusy(true);
  scrollDown();
  status("");
  try {
    await fill(turn, told, stop.signal);
    status("");
  } catch (error) {
    if (error.name === STOPPED) turn.finish = "stopped";
    else turn.error = sentence(error.message);
    status(error.name === STOPPED ? "Stopped." : "");
  }
  if (running?.stop !== stop) return;  // a new conversation began
  running = null;
  painted(update);
  setBusy(false);
  save();
}

/** Stream into `turn`; wait while the server cannot answer yet, ask for a key where one is due. */
async function fill(turn, told, signal) {
  for (;;) {
    try {
      if (!model) showModels(await api.models(key));
      const body = {
        model,
        messages: told,
        stream: true,
        stream_options: {include_usage: true, continuous_usage_stats: true},
        ...requestFields(settings),
      };
      const began = performance.now();
      for await (const chunk of api.chat(body, key, signal)) {
        addChunk(turn, chunk, (performance.now() - began) / 1000);
        paintSoon();
      }
      return;
    } catch (error) {
      if (error.retryAfter) {
        status(`${sentence(error.message)} Trying again in ${error.retryAfter} s.`);
        await pause(error.retryAfter, signal);
        status("");
      } else if (error.status !== 401 || !(await askKey())) {
        throw error;
      }
    }
  }
}

function stopAnswer() {
  running?.stop.abort();
}

/** Drop the turns from `turn` on, and show what is left. */
function cutAt(turn) {
  turns.splice(turns.indexOf(turn));
  showAll();
}

function regenerate(turn) {
  cutAt(turn);
  answer();
}

function newChat() {
  stopAnswer();
  turns.length = 0;
  running = null;
  showAll();
  setBusy(false);
  save();
  status("");
  at.prompt.focus();
}

function save() {
  const kept = remember({turns, settings, model});
  at.hint.title = kept < 0 ? "This browser forbids storage: a reload forgets the conversation." : "";
}

// What is seen

function showTurn(turn) {
  at.welcome.hidden = true;
  if (turn.role === "user") {
    at.log.append(questionView(turn, (text) => {
      cutAt(turn);
      send(text);
      at.prompt.focus();
    }));
    return () => {};
  }
  const {item, update} = answerView(turn, () => regenerate(turn));
  at.log.append(item);
  return update;
}

function showAll() {
  at.log.replaceChildren();
  turns.forEach(showTurn);
  at.welcome.hidden = turns.length > 0;
}

/** The last visit's turns, unless what was stored is broken. */
function showRemembered() {
  try {
    showAll();
  } catch {
    turns.length = 0;
    showAll();
  }
}

let painting = 0;

function paintSoon() {
  painting ||= requestAnimationFrame(() => {
    painting = 0;
    if (running) painted(running.update);
  });
}

/** Update, and stay at the end if that is where the reader is. */
function painted(update) {
  const {scrollHeight, scrollTop, clientHeight} = at.scroll;
  update();
  if (scrollHeight - scrollTop - clientHeight < NEAR_BOTTOM) scrollDown();
}

function scrollDown() {
  at.scroll.scrollTop = at.scroll.scrollHeight;
}

function setBusy(busy) {
  const focused = document.activeElement;
  at.log.ariaBusy = String(busy);
  at.send.hidden = busy;
  at.stop.hidden = !busy;
  document.body.classList.toggle("busy", busy);
  for (const button of document.querySelectorAll("[data-idle]")) button.disabled = busy;
  if (focused?.hidden || focused?.disabled) (busy ? at.stop : at.prompt).focus();
}

function status(words) {
  at.status.textContent = words;
}

/** "max_tokens is 0: ..." as a sentence. */
function sentence(words) {
  return words[0].toUpperCase() + words.slice(1) + (/[.!?]$/.test(words) ? "" : ".");
}

/** Wait; an abort ends the wait with an AbortError. */
function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, {once: true});
  });
}

// Server

/** List the models and wait until requests are taken; one such wait at a time. */
function connect() {
  connecting ??= untilReady().finally(() => connecting = null);
}

async function untilReady() {
  for (;;) {
    try {
      showModels(await api.models(key));
      await api.ready();
      if (at.status.dataset.waiting) status("");
      delete at.status.dataset.waiting;
      return;
    } catch (error) {
      if (error.status === 401) {
        if (await askKey()) continue;
        status("This server needs an API key: see Settings.");
        return;
      }
      if (!running) {
        at.status.dataset.waiting = "yes";
        status(`${sentence(error.message)} Waiting for it.`);
      }
      await pause(error.retryAfter ?? RECONNECT_SECONDS);
    }
  }
}

function showModels(names) {
  at.model.replaceChildren(...names.map((name) => new Option(name)));
  if (!names.includes(model)) model = names[0] ?? "";
  at.model.value = model;
}

/** Show the key's dialog; whether the visitor gave one. */
function askKey() {
  asking ??= new Promise((resolve) => {
    at.access.returnValue = "";
    at.key.value = key;
    at.access.showModal();
    at.access.addEventListener("close", () => {
      asking = null;
      const given = at.access.returnValue === "use";
      if (given) {
        key = at.key.value.trim();
        rememberKey(key);
        pollLater(0);
      }
      resolve(given);
    }, {once: true});
  });
  return asking;
}

// Load of the server

let lastReading = null;
let pollTimer = 0;

function pollLater(milliseconds = POLL_MS) {
  clearTimeout(pollTimer);
  pollTimer = setTimeout(poll, milliseconds);
}

/** Read the load while the page is seen; a server that forbids it is asked no more. */
async function poll() {
  if (document.visibilityState !== "visible") return;
  try {
    const now = reading(await api.metrics(key), performance.now());
    showLoad(now, rate(lastReading, now ?? {at: 0}));
    lastReading = now;
  } catch (error) {
    showLoad(null, null);
    lastReading = null;
    if (error.status >= 400 && error.status < 500) return;
  }
  pollLater();
}

function showLoad(load, tokensPerSecond) {
  at.slots.max = load?.slots || 1;
  at.slots.value = load?.running ?? 0;
  at.running.value = load ? `${load.running}/${load.slots}` : "–";
  at.waiting.value = load ? load.waiting : "–";
  at.rate.value = shortRate(tokensPerSecond);
}

// Hands

function submit() {
  const text = at.prompt.value;
  if (!text.trim()) return;
  if (running) {
    status("An answer is on its way: Esc stops it.");
    return;
  }
  at.prompt.value = "";
  fitPrompt();
  send(text);
}

/** As high as its text; the style sheet says how high at most. */
function fitPrompt() {
  at.prompt.style.height = "auto";
  at.prompt.style.height = `${at.prompt.scrollHeight}px`;
}

function showChanged() {
  const count = changed(settings);
  at.tune.textContent = count ? `Settings (${count})` : "Settings";
}

function listen() {
  at.composer.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  at.prompt.addEventListener("input", fitPrompt);
  at.prompt.addEventListener("keydown", (event) => {
    if (!isSend(event)) return;
    event.preventDefault();
    submit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) stopAnswer();
  });
  at.log.addEventListener("click", ({target}) => {
    if (target.dataset.copy) copy(target.closest("figure").querySelector("pre").textContent, target);
  });
  at.stop.addEventListener("click", stopAnswer);
  at.new.addEventListener("click", newChat);
  at.tune.addEventListener("click", () => at.settings.showModal());
  at["cancel-key"].addEventListener("click", () => at.access.close());
  at["change-key"].addEventListener("click", async () => {
    at.settings.close();
    if (await askKey()) connect();
  });
  at.model.addEventListener("change", () => {
    model = at.model.value;
    save();
  });
  document.addEventListener("visibilitychange", () => pollLater(0));
  addEventListener("pagehide", save);
}

settingsForm(at.settings, settings, () => {
  showChanged();
  save();
});
listen();
showChanged();
showRemembered();
scrollDown();
connect();
poll();
if (matchMedia("(pointer: fine)").matches) at.prompt.focus();
