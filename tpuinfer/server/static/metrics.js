// The server's load, read from /metrics in Prometheus' text format.

const RUNNING = "tpuinfer:num_requests_running";
const WAITING = "tpuinfer:num_requests_waiting";
const SLOTS = "tpuinfer:slots";
const GENERATED = "tpuinfer:generation_tokens_total";

/** name -> value, summed over the labels. */
export function parse(text) {
  const values = new Map();
  for (const line of text.split("\n")) {
    const match = /^([A-Za-z_:][\w:]*)(?:\{.*\})?\s+(\S+)/.exec(line);
    if (match) values.set(match[1], (values.get(match[1]) ?? 0) + Number(match[2]));
  }
  return values;
}

/**
 * {running, slots, waiting, generated, at} of one reading, or null when the server has no engine
 * yet. `at` is in milliseconds.
 */
export function reading(text, at) {
  const values = parse(text);
  if (!values.has(SLOTS)) return null;
  const number = (name) => values.get(name) ?? 0;
  return {
    running: number(RUNNING),
    slots: number(SLOTS),
    waiting: number(WAITING),
    generated: number(GENERATED),
    at,
  };
}

/** Tokens per second between two readings; null when there is nothing to compare. */
export function rate(before, now) {
  if (!before || now.at <= before.at || now.generated < before.generated) return null;
  return (now.generated - before.generated) * 1000 / (now.at - before.at);
}

/** A rate in few digits: 0, 3.4, 128. */
export function shortRate(rate) {
  return rate === null ? "–" : rate > 0 && rate < 10 ? rate.toFixed(1) : rate.toFixed(0);
}
