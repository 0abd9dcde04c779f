"""The official `anthropic` package against hob: `python with_anthropic.py BASE_URL MODEL`."""

import sys

import anthropic

base, model = sys.argv[1:]
client = anthropic.Anthropic(base_url=base, api_key="none", max_retries=0)
asked = [{"role": "user", "content": "What is the capital of France?"}]

answer = client.messages.create(model=model, max_tokens=12, extra_body={"temperature": 0}, messages=asked, system="Answer briefly.")
text = answer.content[0].text
assert text and answer.stop_reason in ("end_turn", "max_tokens") and answer.usage.output_tokens > 0, answer
with client.messages.stream(model=model, max_tokens=12, extra_body={"temperature": 0}, messages=asked, system="Answer briefly.") as stream:
    assert "".join(stream.text_stream) == text
    assert stream.get_final_message().usage.output_tokens == answer.usage.output_tokens

tool = {
    "name": "get_weather",
    "description": "the weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 16}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
choice = {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}
answer = client.messages.create(
    model=model, max_tokens=200, extra_body={"temperature": 0}, messages=asked, tools=[tool], tool_choice=choice
)
use = next(block for block in answer.content if block.type == "tool_use")
assert answer.stop_reason == "tool_use" and "city" in use.input, answer
with client.messages.stream(
    model=model, max_tokens=200, extra_body={"temperature": 0}, messages=asked, tools=[tool], tool_choice=choice
) as stream:
    use = next(block for block in stream.get_final_message().content if block.type == "tool_use")
assert "city" in use.input
back = asked + [
    {"role": "assistant", "content": [use.model_dump(include={"type", "id", "name", "input"})]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "12 C"}]},
]
assert client.messages.create(model=model, max_tokens=5, messages=back, tools=[tool])
assert client.messages.count_tokens(model=model, messages=asked).input_tokens > 5
try:
    client.messages.create(model="nope", max_tokens=5, messages=asked)
    raise SystemExit("no model is called nope")
except anthropic.NotFoundError as error:
    assert "not found" in error.message, error
print("anthropic: ok")
