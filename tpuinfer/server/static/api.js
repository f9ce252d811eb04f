// The server's API as this page uses it: models, metrics and streamed chat completions.

const RETRY_SECONDS = 2;

/** A failure as one readable line. */
export class ApiError extends Error {
  /** `status` is 0 when the server could not be reached; `retryAfter` is in seconds, or null. */
  constructor(message, status = 0, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** The names of the models that the server has. */
export async function models(key) {
  const reply = await (await request("v1/models", {headers: bearer(key)})).json();
  return reply.data.map((model) => model.id);
}

export async function metrics(key) {
  return (await request("metrics", {headers: bearer(key), cache: "no-store"})).text();
}

/** Raises an ApiError with the reason while the server takes no requests. */
export async function ready() {
  await request("ready", {cache: "no-store"});
}

/**
 * The chunks of one answer, as they come.
 * Raises ApiError, also for an error in mid-stream or a stream that breaks off, and AbortError.
 */
export async function* chat(body, key, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: {...bearer(key), "Content-Type": "application/json"},
    body: JSON.stringify(body),
    signal,
  });
  let done = false;
  try {
    for await (const data of events(response.body)) {
      done = data === "[DONE]";
      if (done) return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(oneLine(chunk.error.message), response.status);
      yield chunk;
    }
  } catch (error) {
    throw reached(error);
  } finally {
    if (!done) await response.body.cancel().catch(() => {});
  }
  throw new ApiError("the connection ended before the answer did");
}

async function* events(stream) {
  const parser = eventParser();
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  try {
    for (;;) {
      const {done, value} = await reader.read();
      if (done) return;
      yield* parser(decoder.decode(value, {stream: true}));
    }
  } finally {
    reader.releaseLock();
  }
}

/** A function from the next piece of a stream to the data of the events that end in it. */
export function eventParser() {
  let rest = "";
  return (piece) => {
    const parts = (rest + piece).split(/\r\n\r\n|\n\n|\r\r/);
    rest = parts.pop();
    return parts.map(dataOf).filter((data) => data !== null);
  };
}

function dataOf(event) {
  const lines = event.split(/\r\n|\n|\r/).filter((line) => line.startsWith("data:"));
  return lines.length ? lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n") : null;
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw reached(error);
  }
  if (response.ok) return response;
  throw new ApiError(await reason(response), response.status, retryAfter(response));
}

function reached(error) {
  if (error instanceof ApiError || error.name === "AbortError") return error;
  if (error instanceof SyntaxError) return new ApiError("the server sent what is no JSON");
  return new ApiError("the server cannot be reached");
}

async function reason(response) {
  const text = await response.text().catch(() => "");
  try {
    return oneLine(JSON.parse(text).error.message);
  } catch {
    return oneLine(text) || `the server answered with status ${response.status}`;
  }
}

function oneLine(text) {
  return String(text).replace(/\s+/g, " ").trim().slice(0, 500);
}

function retryAfter(response) {
  if (response.status !== 503) return null;
  const seconds = Number(response.headers.get("Retry-After"));
  return seconds > 0 && seconds <= 60 ? seconds : RETRY_SECONDS;
}

function bearer(key) {
  return key ? {Authorization: `Bearer ${key}`} : {};
}
