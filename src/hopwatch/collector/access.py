"""Who may speak to a collector, and where may it listen? Decided before anything listens."""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from hopwatch.tokens import TokenError, read_private, read_token

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LARGEST_PEM: Final = 1024 * 1024
"""Bytes of a certificate's or key's file."""


@dataclass(frozen=True, slots=True)
class Tls:
    """The files of a certificate and its key, which have been seen to fit."""

    cert: str
    key: str


@dataclass(frozen=True, slots=True)
class Access:
    """What a request has to bring. Without anything said, that is nothing; then only loopback may be listened at."""

    token: str | None = field(default=None, repr=False)
    insecure: bool = False
    """Whether to listen at any address without a token."""
    hosts: tuple[str, ...] = ()
    """Further names by which the collector may be called."""
    tls: Tls | None = None


def read_access(
    host: str,
    *,
    token_file: str | None = None,
    insecure: bool = False,
    hosts: Sequence[str] = (),
    tls_cert: str | None = None,
    tls_key: str | None = None,
) -> Access:
    """Read what the options say.

    Args:
        host: the address to listen at.
        token_file: path of a file with the token.
        insecure: listen at any address without a token.
        hosts: names by which the collector may be called.
        tls_cert: path of a certificate (PEM, with those of intermediate authorities behind it).
        tls_key: path of its key, not encrypted.

    Raises:
        ValueError: something in it cannot be used, or the host is not of this machine alone and there is neither a token
            nor `insecure`. The message names the option and what to do.
    """
    try:
        token = None if token_file is None else read_token(token_file)
    except TokenError as error:
        raise ValueError(f"--token-file: {error}") from None
    access = Access(
        token=token,
        insecure=insecure,
        hosts=tuple(_name(each) for each in hosts),
        tls=_read_tls(tls_cert, tls_key),
    )
    try:
        address = address_of(host)
    except OSError:
        return access  # it cannot be listened at; whoever tries to says why
    check(host, address, access)
    return access


def address_of(host: str) -> str:
    """The one address that is listened at where a name is given, so that both servers take the same.

    Raises:
        OSError: there is no such host.
    """
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM)  # noqa: S104 - as `bind` reads it
    except UnicodeError as error:
        raise OSError(str(error)) from None
    # IPv4 first, as a server that is given a name does by custom.
    return str(min(found, key=lambda each: each[0] != socket.AF_INET)[4][0])


def is_loopback(address: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    return ipaddress.ip_address(address).is_loopback


def check(host: str, address: str, access: Access) -> None:
    """Refuse what would open the collector to everybody.

    Raises:
        ValueError: the address is not loopback, and there is neither a token nor `insecure`.
    """
    if is_loopback(address) or access.token is not None or access.insecure:
        return
    named = repr(host) if host == address else f"{host!r} ({address})"
    raise ValueError(
        f"--host {named} can be reached from elsewhere, and without a token everybody there could read and write "
        "everything: give a file with a token by --token-file, or listen at 127.0.0.1, or take the risk with --insecure"
    )


def warnings(host: str, address: str, access: Access) -> Iterator[str]:
    """What somebody should know who starts a collector like this; a sentence each."""
    if is_loopback(address):
        return
    if access.token is None:
        yield f"whoever reaches {host} can read and write everything here (--insecure)"
    if access.tls is None:
        what = "the token and all telemetry go" if access.token is not None else "all telemetry goes"
        yield f"{what} over the network to {host} without encryption; --tls-cert and --tls-key switch it on"


def allowed_hosts(host: str, address: str, access: Access) -> frozenset[str]:
    """The names and addresses by which the collector may be called, in lower case."""
    return frozenset({"localhost", host.lower().rstrip("."), address, *access.hosts})


def _name(text: str) -> str:
    """A name for `--allow-host`, in lower case."""
    name = text.strip().lower().rstrip(".")
    bare = name.removeprefix("[").removesuffix("]")
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        pass
    if len(name) > 253 or not re.fullmatch(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?", name):
        raise ValueError(
            f"--allow-host {text!r} is not the name or address of a host; it is one without scheme and port, as in collector.example"
        )
    return name


def _read_tls(cert: str | None, key: str | None) -> Tls | None:
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise ValueError("--tls-cert and --tls-key belong together: give both, or none")

    def encrypted() -> str:
        raise ValueError(f"--tls-key {key!r} is encrypted, and nobody is asked for its password: decrypt it")

    try:
        read_private(key, "--tls-key", LARGEST_PEM)
    except TokenError as error:
        raise ValueError(str(error)) from None
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key, encrypted)
    except (OSError, ssl.SSLError) as error:
        why = error.strerror if type(error) is not ssl.SSLError and error.strerror else str(error)
        raise ValueError(f"--tls-cert {cert!r} and --tls-key {key!r} cannot be used: {why}") from None
    return Tls(cert, key)
