// The npm openai client against a server: node openai_npm.mjs BASE_URL MODEL
import OpenAI from "openai";
import assert from "node:assert/strict";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none" });
const messages = [{ role: "user", content: "What is the capital of France?" }];

const stream = await client.chat.completions.create({
  model, messages, temperature: 0, max_tokens: 16, stream: true,
  stream_options: { include_usage: true },
});
let text = "", usage = null;
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.match(text, /Paris/);
assert.equal(usage.prompt_tokens + usage.completion_tokens, usage.total_tokens);

const schema = {
  type: "object", additionalProperties: false, required: ["city", "country"],
  properties: { city: { type: "string", maxLength: 20 }, country: { enum: ["France", "Spain"] } },
};
const formed = await client.chat.completions.create({
  model, messages, temperature: 0, max_tokens: 64,
  response_format: { type: "json_schema", json_schema: { name: "place", strict: true, schema } },
});
const place = JSON.parse(formed.choices[0].message.content);
assert.deepEqual(Object.keys(place).sort(), ["city", "country"]);

const refused = await client.chat.completions
  .create({ model, messages, typical_p: 0.5 })
  .then(() => null, (error) => error);
assert.equal(refused?.status, 400);
assert.match(refused.message, /typical_p/);
console.log(JSON.stringify({ text, place, refused: refused.message }));
