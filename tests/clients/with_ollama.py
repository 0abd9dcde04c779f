"""The official `ollama` package against hob: `python with_ollama.py BASE_URL MODEL`."""

import json
import os
import sys

import ollama

base, model = sys.argv[1:]
client = ollama.Client(host=base)
asked = [{"role": "user", "content": "What is the capital of France?"}]
options = {"temperature": 0, "num_predict": 12}

answer = client.chat(model=model, messages=asked, options=options)
assert answer.message.content and answer.done and answer.eval_count > 0, answer
parts = list(client.chat(model=model, messages=asked, options=options, stream=True))
assert "".join(part.message.content for part in parts) == answer.message.content
assert parts[-1].done and parts[-1].total_duration > 0

answer = client.generate(model=model, prompt="The capital of France is", raw=True, options=options)
assert "Paris" in answer.response, answer

schema = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 16}},
    "required": ["city"],
    "additionalProperties": False,
}
answer = client.chat(model=model, messages=asked, format=schema, options={"temperature": 0})
assert "city" in json.loads(answer.message.content), answer


def get_weather(city: str) -> str:
    """The weather of a city.

    Args:
      city: its name
    """
    return "12 C in " + city


answer = client.chat(model=model, messages=asked, tools=[get_weather], options=options)
assert answer.message.content or answer.message.tool_calls, answer

assert model in [m.model for m in client.list().models]
assert client.show(model).capabilities
assert any(m.model == model for m in client.ps().models)
rows = client.embed(model=os.environ["HOB_EMBEDDER"], input=["A dog runs.", "A puppy is running."])
assert len(rows.embeddings) == 2 and rows.prompt_eval_count > 0, rows
assert "embedding" in client.show(os.environ["HOB_EMBEDDER"]).capabilities
one = client.embeddings(model=os.environ["HOB_EMBEDDER"], prompt="A dog runs.")
assert max(abs(a - b) for a, b in zip(one.embedding, rows.embeddings[0])) < 1e-6
client.copy(model, "copied")
client.create(model="pirate", from_=model, system="Talk like a pirate.")
assert client.generate(model="pirate", prompt="Hi", options={"num_predict": 2}).response is not None
client.delete("pirate")
client.delete("copied")
try:
    client.chat(model="nope", messages=asked)
    raise SystemExit("no model is called nope")
except ollama.ResponseError as error:
    assert error.status_code == 404 and "not found" in error.error, error
client.generate(model=model, keep_alive=0)
print("ollama: ok")
