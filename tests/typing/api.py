"""Is the public interface typed as it is documented? Read by the type checker, never run."""

from __future__ import annotations

import asyncio

from typing_extensions import assert_type

import hopwatch


@hopwatch.service
async def poll(every: float) -> None:
    """A service loop that the application declares."""
    await asyncio.sleep(every)


hopwatch.instrument()
hopwatch.instrument("http://127.0.0.1:4318", service_name="worker")


async def ask() -> None:
    """Use everything once."""
    async with hopwatch.cascade("nightly") as root:
        assert_type(root.id, str)
    with hopwatch.cascade("by hand") as other:
        assert_type(other, hopwatch.cascade)
    hop = hopwatch.current()
    assert_type(hop, "hopwatch.Hop | None")
    if hop is not None:
        assert_type((hop.cascade, hop.id, hop.kind, hop.name), tuple[str, str, str, str])
    left = hopwatch.pending(cascade=root.id)
    assert_type(left, list[hopwatch.Pending])
    assert_type(left[0].hop, "str | None")
    with hopwatch.service():
        task = asyncio.create_task(poll(1.0))
    assert_type(task, asyncio.Task[None])
