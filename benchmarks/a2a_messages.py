"""What does hopwatch cost a message? Blocking sends on loopback, bare and instrumented, in one run.

    python benchmarks/a2a_messages.py [--rounds 9] [--count 150] [--binding jsonrpc|rest|grpc]

A client and a server process for each variant; in each round every variant sends `--count` messages one after the
other. Prints the median over the rounds of the time of a round trip.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from variants import cpu, environment, variants

from hopwatch.demo import run as demo

sys.path.insert(0, str(demo.AGENTS))
CONTRIB = {
    "JSONRPC": ("httpx", "starlette", "asyncio"),
    "HTTP+JSON": ("httpx", "starlette", "asyncio"),
    "GRPC": ("grpc_aio_client", "grpc_aio_server", "asyncio"),
}
"""The other instrumentations of the same calls."""


def client(url: str, binding: str) -> None:
    """Send as many messages as a line of standard input says, and print the seconds a round trip took."""
    import grpc
    import httpx
    from a2a.client import ClientConfig, ClientFactory
    from a2a.helpers import new_text_message
    from a2a.types.a2a_pb2 import AgentCapabilities, AgentCard, AgentInterface, Role, SendMessageRequest

    card = AgentCard(
        name="peer",
        supported_interfaces=[
            AgentInterface(
                url={"JSONRPC": f"{url}/", "HTTP+JSON": f"{url}/rest"}.get(binding, url),
                protocol_binding=binding,
                protocol_version="1.0",
            )
        ],
        capabilities=AgentCapabilities(streaming=False),
    )

    async def run() -> None:
        async with httpx.AsyncClient(timeout=30) as http:
            config = ClientConfig(
                httpx_client=http,
                grpc_channel_factory=grpc.aio.insecure_channel,
                streaming=False,
                supported_protocol_bindings=[binding],
            )
            agent = ClientFactory(config).create(card)
            for line in sys.stdin:
                count = int(line)
                began = time.perf_counter()
                for number in range(count):
                    request = SendMessageRequest(
                        message=new_text_message(f"do the thing {number}", role=Role.ROLE_USER)
                    )
                    async for _ in agent.send_message(request):
                        pass
                print((time.perf_counter() - began) / count, flush=True)
            await agent.close()

    asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--variant", action="append", default=[])
    parser.add_argument("--binding", choices=demo.BINDINGS, default="jsonrpc")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    options = parser.parse_args()
    binding = demo.BINDINGS[options.binding]
    if options.client:
        client(options.client, binding)
        return
    clients: dict[str, subprocess.Popen[str]] = {}
    times: dict[str, list[float]] = {}
    costs: dict[str, list[float]] = {}
    servers: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        cast = demo.Cast(Path(folder))
        try:
            endpoint = demo.start_collector(cast)
            for title, (command, extra) in variants(options.variant, CONTRIB[binding]).items():
                port, grpc_port = demo.free_ports(2)
                takes_grpc = ["--grpc-port", str(grpc_port)] if binding == "GRPC" else []
                to = f"127.0.0.1:{grpc_port}" if takes_grpc else f"http://127.0.0.1:{port}"
                told = environment("worker", endpoint, **extra) if extra is not None else {}
                servers[title] = cast.start(
                    f"worker {title}",
                    [*command, str(demo.AGENTS / "worker.py"), "--port", str(port), *takes_grpc],
                    told,
                ).pid
                demo.wait_for_card(cast, f"worker {title}", port, time.monotonic() + 60)
                told = environment("client", endpoint, **extra) if extra is not None else {}
                clients[title] = subprocess.Popen(
                    [*command, __file__, "--client", to, "--binding", options.binding],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **told},
                )  # fmt: skip
            for number in range(options.rounds + 1):
                for title, process in clients.items():
                    before = cpu(process.pid) + cpu(servers[title])
                    process.stdin.write(f"{options.count}\n")
                    process.stdin.flush()
                    took = float(process.stdout.readline())
                    if number:  # the first round warms up
                        times.setdefault(title, []).append(took)
                        used = cpu(process.pid) + cpu(servers[title]) - before
                        costs.setdefault(title, []).append(used / options.count)
        finally:
            for process in clients.values():
                process.stdin.close()
                process.wait(20)
            cast.end()
    print(
        f"Python {sys.version.split()[0]}, {options.count} blocking sends by {options.binding} a round, median of {options.rounds} rounds"
    )
    bare, bare_cost = (statistics.median(each.get("bare") or [float("nan")]) for each in (times, costs))
    for title, each in times.items():
        took, cost = statistics.median(each), statistics.median(costs[title])
        print(
            f"{title:36} {took * 1000:7.3f} ms a round trip {took / bare:5.3f} x   "
            f"{cost * 1000:7.3f} ms of CPU in both processes {cost / bare_cost:5.3f} x"
        )


if __name__ == "__main__":
    main()
