"""Run inside the clients' environment and a namespace without network: one client, unmodified, against our server.

``python -m tests.clients_contract CLIENT RELEASE REPORT``; the server runs in the same namespace. What the client got
goes into the report, for the test outside.
"""

import asyncio
import fcntl
import importlib
import importlib.metadata
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.factories_ragas import write_report
from tests.ragas_contract import ROWS

PROMPT: Final = "the quick brown fox"
TEXTS: Final = ["a ship carries sealed goods", "서울"]
METRICS: Final = ("answer_relevancy", "context_precision", "context_recall")
OPTIONS: Final = {"max_tokens": 12, "temperature": 0.0}
SAMPLED: Final = {"max_tokens": 12, "temperature": 1.2, "top_p": 0.9, "seed": 5}


def raise_loopback() -> None:
    """Switch the loopback interface of a fresh namespace on."""
    name, is_up, get_flags, set_flags = b"lo", 1, 0x8913, 0x8914
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        flags = struct.unpack("16sh", fcntl.ioctl(handle, get_flags, struct.pack("16sh", name, 0)))[1]
        if not flags & is_up:
            fcntl.ioctl(handle, set_flags, struct.pack("16sh", name, flags | is_up))


@contextmanager
def running(release: Path, *options: str) -> Iterator[str]:
    """Yield the URL of a server over ``release``."""
    command = [os.environ["SERVER_PYTHON"], "-m", "runtime.server", "--release", str(release), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        assert process.wait(60) == 0


def use_openai(url: str) -> dict[str, Any]:
    """Ask with OpenAI's own client, sync and async, whole and streamed."""
    openai = importlib.import_module("openai")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    messages = [{"role": "user", "content": PROMPT}]
    chat = client.chat.completions.create(model="llama", messages=messages, n=2, **SAMPLED)
    completion = client.completions.create(model="llama", prompt=[PROMPT, "서울"], stop="zzz", **OPTIONS)
    vectors = client.embeddings.create(model="bert", input=TEXTS)
    floats = client.embeddings.create(model="bert", input=TEXTS, encoding_format="float")
    found = {
        "chat": client.chat.completions.create(model="llama", messages=messages, **OPTIONS).choices[0].message.content,
        "sampled": [choice.message.content for choice in chat.choices],
        "completion": [choice.text for choice in completion.choices],
        "vectors": [item.embedding for item in vectors.data],
        "floats": [item.embedding for item in floats.data],
        "truncated": vectors.model_extra["truncated"],
        "models": [model.id for model in client.models.list()],
        "model": client.models.retrieve("llama").id,
        "errors": [
            error_of(lambda: client.embeddings.create(model="bert", input="a", dimensions=8)),
            error_of(lambda: client.chat.completions.create(model="none", messages=messages)),
            error_of(lambda: client.chat.completions.create(model="llama", messages=messages, max_tokens=10**6)),
        ],
    }
    stream = client.chat.completions.create(
        model="llama", messages=messages, stream=True, stream_options={"include_usage": True}, **OPTIONS
    )
    chunks = list(stream)
    found["streamed"] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    found["usage"] = chunks[-1].usage.completion_tokens
    found["async"] = asyncio.run(ask_openai_async(openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused")))
    return found


async def ask_openai_async(client: Any) -> list[Any]:  # noqa: ANN401 - a peer's class
    """Return what the async client gets: a whole answer, a streamed one, and the first number of a vector."""
    messages = [{"role": "user", "content": PROMPT}]
    whole, streamed, vectors = await asyncio.gather(
        client.chat.completions.create(model="llama", messages=messages, **OPTIONS),
        client.chat.completions.create(model="llama", messages=messages, stream=True, **OPTIONS),
        client.embeddings.create(model="bert", input=TEXTS),
    )
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in streamed])
    return [whole.choices[0].message.content, text, vectors.data[0].embedding[0]]


def use_keys(url: str) -> dict[str, Any]:
    """Ask a server that wants a key, with the right one and with another."""
    openai = importlib.import_module("openai")
    good = openai.OpenAI(base_url=f"{url}/v1", api_key=os.environ["RIGHT_KEY"], max_retries=0)
    bad = openai.OpenAI(base_url=f"{url}/v1", api_key="another-key-of-somebody", max_retries=0)
    return {"models": [model.id for model in good.models.list()], "error": error_of(bad.models.list)}


def error_of(action: Callable[[], object]) -> list[Any]:
    """Return class, status, parameter and code of the error that a client's call raises."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 - its class is what is asked for
        told: Any = error
        return [type(error).__name__, told.status_code, told.param, told.code]
    return ["no error"]


def use_langchain(url: str) -> dict[str, Any]:
    """Ask with langchain-openai."""
    module = importlib.import_module("langchain_openai")
    options = {"base_url": f"{url}/v1", "api_key": "unused", "model": "llama", "max_tokens": 12, "temperature": 0.0}
    chat, text = module.ChatOpenAI(**options), module.OpenAI(**options)
    embedder = module.OpenAIEmbeddings(
        base_url=f"{url}/v1", api_key="unused", model="bert", check_embedding_ctx_length=False
    )
    chunks = list(chat.stream(PROMPT, stream_usage=True))
    return {
        "chat": chat.invoke(PROMPT).content,
        "batch": [answer.content for answer in chat.batch([PROMPT, PROMPT])],
        "async": asyncio.run(chat.ainvoke(PROMPT)).content,
        "streamed": "".join(chunk.content for chunk in chunks),
        "usage": next(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata),
        "completion": text.invoke(PROMPT),
        "vectors": embedder.embed_documents(TEXTS),
        "query": embedder.embed_query(TEXTS[0]),
    }


def use_litellm(url: str) -> dict[str, Any]:
    """Ask with litellm."""
    litellm = importlib.import_module("litellm")
    options = {"model": "openai/llama", "api_base": f"{url}/v1", "api_key": "unused", **OPTIONS}
    messages = [{"role": "user", "content": PROMPT}]
    streamed = litellm.completion(messages=messages, stream=True, **options)
    vectors = litellm.embedding(model="openai/bert", api_base=f"{url}/v1", api_key="unused", input=TEXTS)
    return {
        "chat": litellm.completion(messages=messages, **options).choices[0].message.content,
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in streamed),
        "async": asyncio.run(litellm.acompletion(messages=messages, **options)).choices[0].message.content,
        "vectors": [item["embedding"] for item in vectors.data],
    }


def use_ragas(url: str) -> dict[str, Any]:
    """Evaluate with ragas over langchain-openai."""
    ragas, metrics = importlib.import_module("ragas"), importlib.import_module("ragas.metrics")
    module = importlib.import_module("langchain_openai")
    options = {"base_url": f"{url}/v1", "api_key": "unused"}
    result = ragas.evaluate(
        importlib.import_module("datasets").Dataset.from_dict(ROWS),
        metrics=[getattr(metrics, name) for name in METRICS],
        llm=importlib.import_module("ragas.llms").LangchainLLMWrapper(module.ChatOpenAI(model="parrot", **options)),
        embeddings=importlib.import_module("ragas.embeddings").LangchainEmbeddingsWrapper(
            module.OpenAIEmbeddings(model="bert", check_embedding_ctx_length=False, **options)
        ),
        run_config=ragas.RunConfig(timeout=300, max_retries=1, max_workers=4),
        raise_exceptions=True,
        show_progress=False,
    )
    return {name: [float(row[name]) for row in result.scores] for name in METRICS}


CLIENTS: Final[Mapping[str, Callable[[str], dict[str, Any]]]] = {
    "openai": use_openai,
    "keys": use_keys,
    "langchain-openai": use_langchain,
    "litellm": use_litellm,
    "ragas": use_ragas,
}


def main(client: str, release: str, report: str, *options: str) -> None:
    """Start the server and run one client."""
    raise_loopback()
    with running(Path(release), *options) as url:
        found = CLIENTS[client](url)
    found["version"] = importlib.metadata.version("openai" if client == "keys" else client)
    write_report(Path(report), found)


if __name__ == "__main__":
    main(*sys.argv[1:])
