"""Run inside a peer's environment: generators as LangChain's models. Writes a report for the test outside."""

import asyncio
import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import torch
from langchain_core.language_models import BaseChatModel, BaseLLM
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import StringPromptValue
from langchain_core.prompts import ChatPromptTemplate

from runtime.adapters.base import GenerationParams, Message
from runtime.adapters.causal_lm import CausalLmAdapter, HcxAdapter
from tests.factories_ragas import write_report

PROMPTS = ["the quick brown", "a ship", "서울"]


def main(folder: Path, report: Path) -> None:
    """Ask everything that LangChain's users ask."""
    torch.set_num_threads(1)
    adapter = HcxAdapter(folder, "cpu", max_new_tokens=20)
    expected = [adapter.generate([Message(role="user", content=text)]).text for text in PROMPTS]
    found = {
        "version": importlib.metadata.version("langchain-core"),
        "llm": llm_facts(adapter, expected),
        "chat": chat_facts(adapter, expected),
        "async": asyncio.run(async_facts(adapter, expected)),
        "models": models_called(folder),
    }
    write_report(report, found)


def llm_facts(adapter: CausalLmAdapter, expected: list[str]) -> dict[str, object]:
    """Return what the LLM does, each fact by name."""
    llm = adapter.get_llm()
    sampled = GenerationParams(temperature=1.0, seed=5)
    hot = [adapter.generate([Message(role="user", content=text)], sampled).text for text in PROMPTS[:1]]
    result = llm.generate(PROMPTS)
    stop = expected[1][3:5]
    return {
        "kind": isinstance(llm, BaseLLM),
        "invoke": llm.invoke(PROMPTS[0]) == expected[0],
        "batch": llm.batch(PROMPTS) == expected,
        "stream": "".join(llm.stream(PROMPTS[1])) == expected[1],
        "stop": llm.invoke(PROMPTS[1], stop=[stop]) == expected[1].partition(stop)[0],
        "prompt_value": llm.generate_prompt([StringPromptValue(text=PROMPTS[2])]).generations[0][0].text == expected[2],
        "bare_value": llm.generate(StringPromptValue(text=PROMPTS[2])).generations[0][0].text == expected[2],
        "bare_text": llm.generate_prompt(PROMPTS[2]).generations[0][0].text == expected[2],
        "reasons": sorted({row[0].generation_info["finish_reason"] for row in result.generations}),
        "usage": result.llm_output["token_usage"]["prompt_tokens"] > 0,
        "seeded": llm.bind(temperature=1.0, seed=5).invoke(PROMPTS[0]) == hot[0],
        "n": [len(row) for row in llm.generate(PROMPTS[:2], temperature=1.0, n=3).generations],
        "no_temperature_to_race_for": not hasattr(llm, "temperature"),
        "several": len({row[0].text for row in llm.generate([PROMPTS[0]] * 3, temperature=1.0).generations}),
        "tokens": llm.get_num_tokens("the cat") == len(adapter.token_ids("the cat")),
        "unknown": error_of(lambda: llm.invoke("a", top_k=3)),
        "too_long": error_of(lambda: llm.invoke("the " * 300)),
    }


def chat_facts(adapter: CausalLmAdapter, expected: list[str]) -> dict[str, object]:
    """Return what the chat model does, each fact by name."""
    chat = adapter.get_chat_model()
    turns = [Message(role="system", content="sun"), Message(role="user", content="cat")]
    answer = chat.invoke([SystemMessage("sun"), HumanMessage("cat")])
    whole = AIMessageChunk(content="")
    for chunk in chat.stream(PROMPTS[0]):
        whole += chunk
    chain = ChatPromptTemplate.from_messages([("system", "sun"), ("human", "{animal}")]) | chat | StrOutputParser()
    parts = [{"type": "text", "text": "c"}, {"type": "text", "text": "at"}]
    picture = HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])
    return {
        "kind": isinstance(chat, BaseChatModel),
        "invoke": answer.content == adapter.generate(turns).text,
        "usage": answer.usage_metadata["input_tokens"] == adapter.generate(turns).prompt_tokens,
        "n": len(chat.generate([[HumanMessage("cat")]], n=2).generations[0]),
        "bad_n": error_of(lambda: chat.invoke("a", n=-1)),
        "finish": answer.response_metadata["finish_reason"] in {"stop", "length"},
        "stream": whole.content == expected[0],
        "stream_usage": whole.usage_metadata["output_tokens"] > 0,
        "chain": chain.invoke({"animal": "cat"}) == answer.content,
        "parts": chat.invoke([SystemMessage("sun"), HumanMessage(parts)]).content == answer.content,
        "picture": error_of(lambda: chat.invoke([picture])),
        "tools": error_of(lambda: chat.invoke("a", tools=[])),
    }


async def async_facts(adapter: CausalLmAdapter, expected: list[str]) -> dict[str, object]:
    """Return what the asynchronous calls do, each fact by name."""
    llm, chat = adapter.get_llm(), adapter.get_chat_model()
    together = await asyncio.gather(*(llm.ainvoke(text) for text in PROMPTS * 3))
    return {
        "gather": together == expected * 3,
        "abatch": await llm.abatch(PROMPTS) == expected,
        "astream": "".join([piece async for piece in llm.astream(PROMPTS[1])]) == expected[1],
        "chat": [(await chat.ainvoke(text)).content for text in PROMPTS] == expected,
        "chat_astream": "".join([str(piece.content) async for piece in chat.astream(PROMPTS[1])]) == expected[1],
        "idle": not adapter.engine.busy,
    }


def models_called(folder: Path) -> list[str]:
    """Return ``.model`` of three adapters: RAGTrace looks for HCX in it."""
    plain = CausalLmAdapter(folder, "cpu").get_llm().model
    named = HcxAdapter(folder, "cpu").get_llm().model
    return [plain, named, HcxAdapter(folder.rename(folder.with_name("HCX-005")), "cpu").get_chat_model().model]


def error_of(call: Any) -> str:  # noqa: ANN401 - any call
    """Return class and message of the error that a call raises."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - its class is what is asked for
        return f"{type(error).__name__}: {error}"
    return "no error"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
