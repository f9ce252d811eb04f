// What the browser remembers. Storage may be full, forbidden or written by another version: the
// page works without it then.

const NAME = "tpuinfer.chat";
const KEY_NAME = "tpuinfer.key";
const MOST_CHARACTERS = 1_000_000;

/** {turns, settings, model} of the last visit; empty ones when there are none that can be read. */
export function recall(storage = quietly(() => localStorage)) {
  const saved = quietly(() => JSON.parse(storage.getItem(NAME))) ?? {};
  return {
    turns: Array.isArray(saved.turns) ? saved.turns.filter(isTurn) : [],
    settings: isPlain(saved.settings) ? textsOf(saved.settings) : {},
    model: typeof saved.model === "string" ? saved.model : "",
  };
}

/**
 * Keep `state`, without its oldest turns where they do not fit.
 * Returns how many turns were kept, or -1 when nothing can be kept.
 */
export function remember(state, storage = quietly(() => localStorage)) {
  let turns = state.turns;
  for (;;) {
    const text = JSON.stringify({...state, turns});
    const fits = text.length <= MOST_CHARACTERS;
    if (fits && quietly(() => (storage.setItem(NAME, text), true))) return turns.length;
    if (!turns.length) return -1;
    turns = turns.slice(Math.ceil(turns.length / 2));
  }
}

/** The API key lives in the tab, not on the disk. */
export function recallKey() {
  return quietly(() => sessionStorage.getItem(KEY_NAME)) ?? "";
}

export function rememberKey(key) {
  quietly(() => key ? sessionStorage.setItem(KEY_NAME, key) : sessionStorage.removeItem(KEY_NAME));
}

function isTurn(turn) {
  return isPlain(turn) && ["user", "assistant"].includes(turn.role)
    && typeof turn.content === "string";
}

function textsOf(settings) {
  return Object.fromEntries(
    Object.entries(settings).filter(([, value]) => typeof value === "string"));
}

function isPlain(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function quietly(action) {
  try {
    return action();
  } catch {
    return undefined;
  }
}
