"""`python -m hopwatch.collector`: the collector alone. `hopwatch serve` is the same, with the other commands beside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hopwatch.collector import serve as running
from hopwatch.collector.options import access_options
from hopwatch.collector.pages import parse_trace_url

if TYPE_CHECKING:
    from hopwatch.collector.access import Access


@click.command()
@click.option("--host", default=running.HOST, show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=running.PORT, show_default=True)
@click.option("--grpc-port", type=click.IntRange(0, 65535), default=running.GRPC_PORT, show_default=True)
@click.option("--store", help="A file, or :memory:.")
@click.option("--retain", default=running.RETAIN, show_default=True, help="As 7d, 12h, 30m, 45s.")
@click.option("--max-size", default="2G", show_default=True, help="As 500M, 2G.")
@click.option("--blackbox", metavar="DIR|off", help="Where this host's agents keep their black boxes.")
@access_options
@click.option("--trace-url", metavar="URL", help="Where traces are to be seen, with {trace} in it.")
def main(
    host: str,
    port: int,
    grpc_port: int,
    store: str | None,
    retain: str,
    max_size: str,
    blackbox: str | None,
    access: Access,
    trace_url: str | None,
) -> None:
    """Run a collector."""
    try:
        kept, size = running.parse_duration(retain), running.parse_size(max_size)
        folder = running.parse_blackbox(blackbox)
        template = None if trace_url is None else parse_trace_url(trace_url)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        running.serve(host, port, grpc_port, store, kept, size, folder, access, trace_url=template)
    except running.ServeError as error:
        raise click.ClickException(str(error)) from None


main()
