"""`litellm` and `langchain-openai` against hob: `python with_litellm.py BASE_URL MODEL`."""

import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # asks nobody for prices

import litellm
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

base, model = sys.argv[1:]
asked = [{"role": "user", "content": "What is the capital of France?"}]
more = dict(temperature=0, max_tokens=12)

answer = litellm.completion(model="openai/" + model, api_base=base + "/v1", api_key="none", messages=asked, **more)
assert answer.choices[0].message.content, answer
parts = litellm.completion(
    model="openai/" + model, api_base=base + "/v1", api_key="none", messages=asked, stream=True, **more
)
assert "".join(part.choices[0].delta.content or "" for part in parts)
answer = litellm.completion(model="ollama_chat/" + model, api_base=base, messages=asked, **more)
assert answer.choices[0].message.content, answer

chat = ChatOpenAI(model=model, base_url=base + "/v1", api_key="none", temperature=0, max_tokens=12)
answer = chat.invoke([HumanMessage("What is the capital of France?")])
assert answer.content and answer.usage_metadata["output_tokens"] > 0, answer
assert "".join(part.content for part in chat.stream("What is the capital of France?"))
schema = {
    "title": "city",
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 16}},
    "required": ["city"],
    "additionalProperties": False,
}
free = ChatOpenAI(model=model, base_url=base + "/v1", api_key="none", temperature=0)
answer = free.with_structured_output(schema, method="json_schema").invoke("Name a city.")
assert "city" in answer, answer
answer = free.with_structured_output(schema, method="function_calling").invoke("Name a city.")
assert "city" in answer, answer
rows = litellm.embedding(
    model="openai/" + os.environ["HOB_EMBEDDER"], input=["A dog runs."], api_base=base + "/v1", api_key="none"
)
assert len(rows.data[0]["embedding"]) > 0, rows
embedder = OpenAIEmbeddings(
    model=os.environ["HOB_EMBEDDER"], base_url=base + "/v1", api_key="none", check_embedding_ctx_length=False
)
assert len(embedder.embed_documents(["A dog runs.", "A puppy is running."])) == 2
print("litellm and langchain: ok")
