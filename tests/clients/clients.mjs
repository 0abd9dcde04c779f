// The `openai` and `ai` packages of npm against hob: `node clients.mjs BASE_URL MODEL`.
import assert from "node:assert";
import OpenAI from "openai";
import { embed, generateObject, generateText, jsonSchema, streamText, tool } from "ai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";

const [base, model] = process.argv.slice(2);
const messages = [{ role: "user", content: "What is the capital of France?" }];
const city = {
  type: "object",
  properties: { city: { type: "string", maxLength: 16 } },
  required: ["city"],
  additionalProperties: false,
};

const client = new OpenAI({ baseURL: base + "/v1", apiKey: "none", maxRetries: 0 });
const whole = await client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 12 });
assert(whole.choices[0].message.content);
let text = "";
const stream = await client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 12, stream: true });
for await (const part of stream) text += part.choices[0]?.delta?.content ?? "";
assert.strictEqual(text, whole.choices[0].message.content);
await assert.rejects(client.chat.completions.create({ model: "nope", messages }), OpenAI.NotFoundError);
const left = await client.chat.completions.create({ model, messages, max_tokens: 4000, stream: true });
for await (const _ of left) break; // leaves

const provider = createOpenAICompatible({ name: "hob", baseURL: base + "/v1", supportsStructuredOutputs: true });
const asked = { model: provider(model), prompt: "What is the capital of France?", temperature: 0 };
assert((await generateText({ ...asked, maxOutputTokens: 12 })).text);
let said = "";
for await (const part of streamText({ ...asked, maxOutputTokens: 12 }).textStream) said += part;
assert(said);
const tools = { weather: tool({ description: "the weather of a city", inputSchema: jsonSchema(city) }) };
const called = streamText({ ...asked, tools, toolChoice: { type: "tool", toolName: "weather" } });
const calls = await called.toolCalls;
assert(calls.length > 0 && calls[0].toolName === "weather" && "city" in calls[0].input);
const { object } = await generateObject({ ...asked, schema: jsonSchema(city) });
assert("city" in object);
const embedder = process.env.HOB_EMBEDDER;
const rows = await client.embeddings.create({ model: embedder, input: ["A dog runs.", "A puppy is running."] });
assert.strictEqual(rows.data.length, 2);
const { embedding } = await embed({ model: provider.textEmbeddingModel(embedder), value: "A dog runs." });
assert(Math.abs(embedding[0] - rows.data[0].embedding[0]) < 1e-6);
console.log("openai and ai of npm: ok");
