"""Bodies that never end or never come, without a server and without a model."""

import asyncio
from collections.abc import AsyncIterator

import httpx

from runtime.server.app import Limits, make_app
from runtime.server.service import Offer, Service


def answer_to(body: AsyncIterator[bytes], limits: Limits) -> httpx.Response:
    """Return the answer of a server without models, asked in this process."""
    offer = Offer(configs=(), preload=(), most=1, depth=1)
    service = Service(offer, on_ready=lambda: None, on_failure=lambda _: None)
    transport = httpx.ASGITransport(app=make_app(service, limits=limits))

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.post("/v1/embeddings", content=body)

    response = asyncio.run(ask())
    assert "sealift_open_requests 0" in service.metrics.render()
    return response


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b" " * 1000


async def stalled() -> AsyncIterator[bytes]:
    yield b"{"
    await asyncio.sleep(60)


def test_a_body_without_end() -> None:
    response = answer_to(endless(), Limits(body_bytes=10_000))
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")


def test_a_body_that_does_not_come() -> None:
    response = answer_to(stalled(), Limits(body_seconds=0.05))
    assert (response.status_code, response.json()["error"]["message"]) == (408, "the body didn't arrive within 0.05 s")
