"""With which options does one say who may speak to a collector? The same for both ways to start one."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from hopwatch.collector.access import read_access

if TYPE_CHECKING:
    from collections.abc import Callable

    Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS: Final = (
    click.option(
        "--token-file",
        metavar="FILE",
        help="A file with the token that everybody has to bring, for OTLP too. Needed beyond loopback.",
    ),
    click.option(
        "--insecure",
        is_flag=True,
        help="Listen beyond loopback without a token: everybody who gets there may read and write.",
    ),
    click.option("--tls-cert", metavar="FILE", help="Serve TLS with this certificate (PEM), on both ports."),
    click.option("--tls-key", metavar="FILE", help="Its key (PEM)."),
    click.option(
        "--allow-host",
        metavar="NAME",
        multiple=True,
        help="A name by which it may be called, beside localhost and --host; may be given again.",
    ),
)


def access_options(command: Command) -> Command:
    """Add the options. The command gets `access` instead of them; it must have `host`."""

    @functools.wraps(command)
    def wrapped(
        *args: Any,
        host: str,
        token_file: str | None,
        insecure: bool,
        tls_cert: str | None,
        tls_key: str | None,
        allow_host: tuple[str, ...],
        **rest: Any,
    ) -> Any:
        try:
            access = read_access(
                host,
                token_file=token_file,
                insecure=insecure,
                hosts=allow_host,
                tls_cert=tls_cert,
                tls_key=tls_key,
            )
        except ValueError as error:
            raise click.UsageError(f"{error}.") from None
        return command(*args, host=host, access=access, **rest)

    for option in reversed(_OPTIONS):
        option(wrapped)
    return wrapped  # type: ignore[return-value]
