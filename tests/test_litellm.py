"""Is a cascade settled that was the first to ask a model by LiteLLM, whose logging then lives as long as the program?"""

import asyncio
import json
import time

import pytest

import hopwatch

SKIPPED = "ci: may be skipped; {} is not among the test requirements"


async def closed(watched, name):
    """Wait until a hop is closed; what hangs is told before the test is over by its deadline."""
    over = time.monotonic() + 40
    while name in watched.open():
        assert time.monotonic() < over, [(each.name, each.location) for each in hopwatch.pending()]
        watched.tick()
        await asyncio.sleep(0.02)


class Answers:
    """What an LLM's server says, in this process: one answer, in JSON."""

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        choice = {"index": 0, "message": {"role": "assistant", "content": "three"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        body = {
            "id": "1",
            "created": 1,
            "model": "x",
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage,
        }
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})


@pytest.mark.filterwarnings("ignore")  # LiteLLM's own
def test_a_cascade_is_settled_that_was_the_first_to_ask_a_model_by_litellm(watched, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # fetches nothing
    litellm = pytest.importorskip("litellm", reason=SKIPPED.format("litellm"))
    openai = pytest.importorskip("openai", reason=SKIPPED.format("openai"))
    httpx = pytest.importorskip("httpx", reason=SKIPPED.format("httpx"))

    async def main():
        http = httpx.AsyncClient(transport=httpx.ASGITransport(Answers()))
        client = openai.AsyncOpenAI(api_key="none", base_url="http://model/v1", http_client=http)
        with hopwatch.cascade("first"):
            asked = [{"role": "user", "content": "1 + 2"}]
            answer = await litellm.acompletion(model="openai/x", messages=asked, client=client)
        assert answer.choices[0].message.content == "three"
        while not any("_worker_loop" in repr(task.get_coro()) for task in asyncio.all_tasks()):
            await asyncio.sleep(0.02)
        await closed(watched, "first")
        assert hopwatch.pending() == []

    asyncio.run(asyncio.wait_for(main(), 60))
    assert watched.told()["first"] == "finished"
    assert watched.settled()
