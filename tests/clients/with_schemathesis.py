"""Requests made from the description of the model APIs, and answers held to it: `python with_schemathesis.py BASE_URL MODEL`.

Half of what is sent is as the description says, and half is not. No answer may be a fault, or one that is not described.
"""

import json
import sys
import time

import jsonschema
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

base, model = sys.argv[1:]
base = base.rstrip("/")
schema = schemathesis.openapi.from_url(base + "/v1/openapi.json")
document = schema.raw_schema
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
# What is sent is the same each time: a failure can be repeated.
LIMITS = settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
# It would ask registries elsewhere.
LEFT_OUT = {"pull"}
# A short answer says as much as a long one.
MOST = {"max_tokens": 3, "max_completion_tokens": 3, "max_output_tokens": 3, "n": 2}
# So long requests of one kind are made, both good and bad ones.
SECONDS = 8
USES_MODEL = {"chat", "complete", "respond", "message", "count_tokens", "ollama_chat", "generate", "show"}
USES_MODEL |= {"embeddings", "embed", "embed_one"}
seen = {}


def mend(operation, case):
    """Names the model that is here, and asks for little, where the body is of the right kind."""
    body = case.body
    if not isinstance(body, dict):
        return
    if operation in USES_MODEL and isinstance(body.get("model"), str) and len(body["model"]) % 4:
        body["model"] = model
    if operation in {"copy", "create"}:
        body.update({key: model for key in ["source", "from"] if isinstance(body.get(key), str)})
    for key, most in MOST.items():
        if isinstance(body.get(key), int) and most < body[key] <= 4294967295 and (key != "n" or body[key] <= 16):
            body[key] = most
    if operation in {"chat", "complete", "respond"} and not body.get("max_completion_tokens"):
        most = "max_output_tokens" if operation == "respond" else "max_tokens"
        if body.get(most) is None:
            body[most] = 3
    if operation in {"ollama_chat", "generate"}:
        options = body.get("options")
        if not isinstance(options, dict) or isinstance(options.get("num_predict"), int | None):
            body["options"] = {**(options if isinstance(options, dict) else {}), "num_predict": 3}


def parts(response):
    """What the events, or the lines, of a stream say."""
    if response.headers["content-type"][0].startswith("text/event-stream"):
        data = [line[6:] for line in response.text.split("\n") if line.startswith("data: ")]
        return [json.loads(part) for part in data if part != "[DONE]"]
    return [json.loads(line) for line in response.text.split("\n") if line]


def check_stream(operation, response):
    kind = response.headers["content-type"][0].split(";")[0]
    described = operation.definition.raw["responses"]["200"]["content"][kind].get("schema", {})
    described = described.get("properties", {}).get("data", described).get("contentSchema")
    if described is None:
        return
    # An error may come in the middle.
    errors = [{"$ref": f"#/components/schemas/{api}Error"} for api in ["OpenAi", "Anthropic", "Ollama"]]
    whole = {"anyOf": [described, *errors], "components": document["components"]}
    validator = jsonschema.Draft202012Validator(whole)
    for part in parts(response):
        validator.validate(part)


def run(operation, mode, examples):
    name = operation.definition.raw["operationId"]
    until = time.monotonic() + SECONDS

    @settings(LIMITS, max_examples=examples)
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case):
        # On a slow machine fewer are sent, but some of each in any case.
        if time.monotonic() > until and seen.get(name, {}).get(200):
            return
        mend(name, case)
        response = case.call(base_url=base, timeout=60)
        case.validate_response(response, checks=CHECKS)
        if response.status_code == 200:
            check_stream(operation, response)
        count = seen.setdefault(name, {})
        count[response.status_code] = count.get(response.status_code, 0) + 1

    one()


started = time.monotonic()
for found in schema.get_all_operations():
    operation = found.ok()
    if operation.definition.raw["operationId"] in LEFT_OUT:
        continue
    run(operation, GenerationMode.POSITIVE, 25)
    if operation.body:
        run(operation, GenerationMode.NEGATIVE, 15)

for name in sorted(USES_MODEL):
    assert seen[name].get(200), f"no request to {name} was answered: {seen[name]}"
print(f"schemathesis: {sum(map(lambda of: sum(of.values()), seen.values()))} requests")
print(f"{time.monotonic() - started:.0f} s: {seen}", file=sys.stderr)
print("schemathesis: ok")
