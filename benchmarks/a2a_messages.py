"""What does hopwatch cost a message? Blocking sends on loopback with each engine and binding, bare and instrumented, in one run.

    python benchmarks/a2a_messages.py [--rounds 5] [--count 100] [--binding jsonrpc|rest|grpc] [--engine active|legacy]

A client and a server process for each variant, which all engines and bindings share; in each round every variant sends `--count`
messages one after the other, by each binding to each engine. Prints the medians over the rounds: of the time of a round trip, and of the
CPU that both processes used for it.
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

AGENT = Path(__file__).with_name("messages_agent.py")
CONTRIB = ("httpx", "starlette", "grpc_aio_client", "grpc_aio_server", "asyncio")
"""The other instrumentations of the same calls."""
ENGINES = ("active", "legacy")


def client() -> None:
    """Of each line of standard input, `binding URL count`, send as many messages, and print the seconds a round trip took."""
    import grpc
    import httpx
    from a2a.client import ClientConfig, ClientFactory
    from a2a.helpers import new_text_message
    from a2a.types.a2a_pb2 import AgentCapabilities, AgentCard, AgentInterface, Role, SendMessageRequest

    async def run() -> None:
        agents = {}
        async with httpx.AsyncClient(timeout=30) as http:
            for line in sys.stdin:
                binding, url, count = line.split()
                if url not in agents:
                    card = AgentCard(
                        name="peer",
                        supported_interfaces=[
                            AgentInterface(url=url, protocol_binding=binding, protocol_version="1.0")
                        ],
                        capabilities=AgentCapabilities(streaming=False),
                    )
                    config = ClientConfig(
                        httpx_client=http,
                        grpc_channel_factory=grpc.aio.insecure_channel,
                        streaming=False,
                        supported_protocol_bindings=[binding],
                    )
                    agents[url] = ClientFactory(config).create(card)
                began = time.perf_counter()
                for number in range(int(count)):
                    request = SendMessageRequest(
                        message=new_text_message(f"do the thing {number}", role=Role.ROLE_USER)
                    )
                    async for _ in agents[url].send_message(request):
                        pass
                print((time.perf_counter() - began) / int(count), flush=True)
            for agent in agents.values():
                await agent.close()

    asyncio.run(run())


class Variant:
    """A client and a server, with one instrumentation."""

    def __init__(self, cast, endpoint, title, command, extra) -> None:
        ports = demo.free_ports(3)
        told = environment("worker", endpoint, **extra) if extra is not None else {}
        name = f"worker {title}"
        self.server = cast.start(name, [*command, str(AGENT), *map(str, ports)], told).pid
        demo.wait_for_card(cast, name, ports[0], time.monotonic() + 60)
        http, *grpc_ports = ports
        self.urls = {}
        for engine, prefix, port in zip(ENGINES, ("", "/legacy"), grpc_ports, strict=True):
            self.urls[engine, "jsonrpc"] = f"http://127.0.0.1:{http}{prefix}/"
            self.urls[engine, "rest"] = f"http://127.0.0.1:{http}{prefix}/rest"
            self.urls[engine, "grpc"] = f"127.0.0.1:{port}"
        told = environment("client", endpoint, **extra) if extra is not None else {}
        self.client = subprocess.Popen(
            [*command, __file__, "--client"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **told},
        )  # fmt: skip

    def send(self, engine: str, binding: str, count: int) -> tuple[float, float]:
        """Seconds that a round trip took, and of CPU that it cost."""
        before = cpu(self.client.pid) + cpu(self.server)
        self.client.stdin.write(f"{demo.BINDINGS[binding]} {self.urls[engine, binding]} {count}\n")
        self.client.stdin.flush()
        took = float(self.client.stdout.readline())
        return took, (cpu(self.client.pid) + cpu(self.server) - before) / count

    def end(self) -> None:
        self.client.stdin.close()
        self.client.wait(20)


def table(measured, titles, what: str, number: int) -> str:
    """Ratios to what is bare, as Markdown."""
    lines = [f"| {what} | " + " | ".join(titles) + " |", "|---" * (1 + len(titles)) + "|"]
    for (engine, binding), by_title in measured.items():
        medians = {
            title: statistics.median(each[number] for each in pairs) for title, pairs in by_title.items()
        }
        bare = medians.get("bare", float("nan"))
        cells = [
            f"{medians[title] * 1000:.2f} ms" if title == "bare" else f"{medians[title] / bare:.2f} x"
            for title in titles
        ]
        lines.append(f"| {engine}, {binding} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--variant", action="append", default=[])
    parser.add_argument("--binding", action="append", choices=demo.BINDINGS)
    parser.add_argument("--engine", action="append", choices=ENGINES)
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        client()
        return
    began, load = time.monotonic(), os.getloadavg()[0]
    places = [
        (engine, binding)
        for engine in options.engine or ENGINES
        for binding in options.binding or demo.BINDINGS
    ]
    measured: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {place: {} for place in places}
    made: dict[str, Variant] = {}
    with tempfile.TemporaryDirectory() as folder:
        cast = demo.Cast(Path(folder))
        try:
            endpoint = demo.start_collector(cast)
            for title, (command, extra) in variants(options.variant, CONTRIB).items():
                made[title] = Variant(cast, endpoint, title, command, extra)
            for number in range(options.rounds + 1):
                for place in places:
                    for title, variant in made.items():
                        # The first round warms up.
                        found = variant.send(*place, options.count if number else max(options.count // 4, 1))
                        if number:
                            measured[place].setdefault(title, []).append(found)
        finally:
            for variant in made.values():
                variant.end()
            cast.end()
    print(
        f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, load {load:.1f} before: {options.count} blocking sends a round,"
        f" median of {options.rounds} rounds, {time.monotonic() - began:.0f} s\n"
    )
    print(table(measured, list(made), "a round trip", 0), "\n")
    print(table(measured, list(made), "CPU of client and server", 1))


if __name__ == "__main__":
    main()
