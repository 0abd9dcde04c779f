"""The official `openai` package against hob: `python with_openai.py BASE_URL MODEL`."""

import json
import os
import sys

import openai
from pydantic import BaseModel

base, model = sys.argv[1:]
client = openai.OpenAI(base_url=base + "/v1", api_key="none", max_retries=0)
asked = [{"role": "user", "content": "What is the capital of France?"}]

# chat
answer = client.chat.completions.create(model=model, messages=asked, temperature=0, max_tokens=12)
text = answer.choices[0].message.content
assert text
assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
assert answer.choices[0].finish_reason in ("stop", "length")

# stream
stream = client.chat.completions.create(
    model=model, messages=asked, temperature=0, max_tokens=12, stream=True, stream_options={"include_usage": True}
)
chunks = list(stream)
assert chunks[0].choices[0].delta.role == "assistant"
assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens

# several, with probabilities
answer = client.chat.completions.create(
    model=model, messages=asked, max_tokens=4, n=2, seed=7, logprobs=True, top_logprobs=3, stop=["zzz"]
)
assert len(answer.choices) == 2
assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 3

# tools, whole and in pieces
tool = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "the weather of a city",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 16}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
answer = client.chat.completions.create(
    model=model, messages=asked, tools=[tool], tool_choice="required", temperature=0, parallel_tool_calls=False
)
call = answer.choices[0].message.tool_calls[0]
assert answer.choices[0].finish_reason == "tool_calls" and call.function.name == "get_weather"
assert "city" in json.loads(call.function.arguments)
with client.chat.completions.stream(
    model=model, messages=asked, tools=[tool], tool_choice="required", temperature=0, parallel_tool_calls=False
) as stream:
    for _ in stream:
        pass
    call = stream.get_final_completion().choices[0].message.tool_calls[0]
assert "city" in json.loads(call.function.arguments)
back = asked + [
    answer.choices[0].message.model_dump(exclude_none=True),
    {"role": "tool", "tool_call_id": answer.choices[0].message.tool_calls[0].id, "content": "12 C"},
]
assert client.chat.completions.create(model=model, messages=back, tools=[tool], tool_choice="none", max_tokens=5)


# a schema
class City(BaseModel):
    capital: bool
    country: str | None


schema = City.model_json_schema()
schema["additionalProperties"] = False
schema["properties"]["country"] = {"type": "string", "maxLength": 20}
schema["required"] = ["capital", "country"]
answer = client.chat.completions.create(
    model=model,
    messages=asked,
    temperature=0,
    response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}},
)
City.model_validate_json(answer.choices[0].message.content)

# plain completions, models
answer = client.completions.create(model=model, prompt="The capital of France is", temperature=0, max_tokens=2)
assert "Paris" in answer.choices[0].text, answer
assert model in [m.id for m in client.models.list()]
assert client.models.retrieve(model).id == model

# responses
answer = client.responses.create(model=model, input="What is the capital of France?", temperature=0, max_output_tokens=12)
assert answer.output_text, answer
events = list(client.responses.create(model=model, input="Hi", temperature=0, max_output_tokens=5, stream=True))
assert events[0].type == "response.created" and events[-1].type in ("response.completed", "response.incomplete")

# embeddings: as the client asks for them, packed, and as numbers
embedder = os.environ["HOB_EMBEDDER"]
texts = ["A dog runs.", "A puppy is running.", "Interest rates rose again."]
rows = client.embeddings.create(model=embedder, input=texts)
assert [row.index for row in rows.data] == [0, 1, 2] and rows.usage.prompt_tokens > 0, rows
plain = client.embeddings.create(model=embedder, input=texts, encoding_format="float")
for packed, row in zip(rows.data, plain.data):
    assert max(abs(a - b) for a, b in zip(packed.embedding, row.embedding)) < 1e-6
    assert abs(sum(x * x for x in row.embedding) - 1) < 1e-4
near = lambda a, b: sum(x * y for x, y in zip(rows.data[a].embedding, rows.data[b].embedding))
if embedder.startswith("all-minilm"):
    assert near(0, 1) > 0.7 > 0.2 > near(0, 2), (near(0, 1), near(0, 2))
try:
    client.embeddings.create(model=embedder, input=[""])
    raise SystemExit("nothing has no meaning")
except openai.BadRequestError as error:
    assert error.param == "input", error
try:
    client.chat.completions.create(model=embedder, messages=asked)
    raise SystemExit("it does not talk")
except openai.BadRequestError:
    pass

# errors
try:
    client.chat.completions.create(model="nope", messages=asked)
    raise SystemExit("no model is called nope")
except openai.NotFoundError as error:
    assert error.code == "model_not_found" and error.param == "model", error
try:
    client.chat.completions.create(model=model, messages=asked, temperature=9)
    raise SystemExit("nothing is that wild")
except openai.BadRequestError as error:
    assert error.param == "temperature", error

# cancel
stream = client.chat.completions.create(model=model, messages=asked, max_tokens=4000, stream=True)
next(iter(stream))
stream.close()
print("openai: ok")
