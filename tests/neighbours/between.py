"""What does a service without hopwatch do that stands between two agents? Run as a program: `python between.py aiohttp contrib`.

It serves on a free port, which it prints, and calls agents by the client that is named: httpx, aiohttp, requests or urllib3.
`bare`: it knows nothing of tracing, and hands on the headers that it got, as a gateway does. `contrib`: it is instrumented with
OpenTelemetry, and hands on nothing but what that puts into its requests.

- `POST /to/<port>/`: hands a message on to the agent at that port, and its answer back.
- `GET /ask/<port>`: sends that agent a message of its own.
"""

import asyncio
import json
import sys
import uuid

import aiohttp
import httpx
import requests
import urllib3
import uvicorn

HOP_BY_HOP = {
    b"host",
    b"content-length",
    b"connection",
    b"accept-encoding",
    b"transfer-encoding",
    b"keep-alive",
}
TRACE = {b"traceparent", b"tracestate"}
OF_A2A = {b"content-type", b"a2a-version"}


async def by_httpx(url, body, headers):
    async with httpx.AsyncClient(timeout=60) as http:
        answer = await http.post(url, content=body, headers=headers)
        return answer.status_code, answer.headers.items(), answer.content


async def by_aiohttp(url, body, headers):
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as answer:
        return answer.status, answer.headers.items(), await answer.read()


async def by_requests(url, body, headers):
    answer = await asyncio.to_thread(requests.post, url, data=body, headers=headers, timeout=60)
    return answer.status_code, answer.headers.items(), answer.content


async def by_urllib3(url, body, headers):
    answer = await asyncio.to_thread(urllib3.PoolManager().request, "POST", url, body=body, headers=headers)
    return answer.status, answer.headers.items(), answer.data


CALL = {"httpx": by_httpx, "aiohttp": by_aiohttp, "requests": by_requests, "urllib3": by_urllib3}


def serving(call, *, bare):
    async def app(scope, receive, send):
        assert scope["type"] == "http"
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        _, what, port, *_ = scope["path"].split("/")
        if what == "ask":
            said = {"messageId": str(uuid.uuid4()), "role": "ROLE_USER", "parts": [{"text": "price?"}]}
            body = json.dumps(
                {"jsonrpc": "2.0", "id": "1", "method": "SendMessage", "params": {"message": said}}
            ).encode()
            headers = {"content-type": "application/json", "a2a-version": "1.0"}
            kept = TRACE
        else:
            headers, kept = {}, None
        for name, value in scope["headers"]:
            if name in OF_A2A or (bare and (name in kept if kept else name not in HOP_BY_HOP)):
                headers[name.decode()] = value.decode()
        status, given, answer = await call(f"http://127.0.0.1:{port}/", body, headers)
        back = [(name.lower().encode(), value.encode()) for name, value in given]
        back = [each for each in back if each[0] == b"content-type" or (bare and each[0] not in HOP_BY_HOP)]
        await send({"type": "http.response.start", "status": status, "headers": back})
        await send({"type": "http.response.body", "body": answer})

    return app


async def main(client, mode):
    app = serving(CALL[client], bare=mode == "bare")
    if mode == "contrib":
        from importlib.metadata import entry_points

        from opentelemetry import trace
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.trace import TracerProvider

        trace.set_tracer_provider(TracerProvider())
        name = "aiohttp-client" if client == "aiohttp" else client
        (found,) = entry_points(group="opentelemetry_instrumentor", name=name)
        found.load()().instrument()
        app = OpenTelemetryMiddleware(app)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await running


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
