"""Are the libraries' objects with us what they are without us? Functions, representations, copies, weak references, contexts.

What a program *does* with us and without is compared in test_same_behaviour.py; that nothing is kept alive, beside each instrumentation.
"""

import asyncio
import contextlib
import contextvars
import copy
import inspect
import pickle
import re
import sys
import threading
import time
import types
import weakref
from unittest import mock

import pytest
from opentelemetry import trace

import hopwatch
from hopwatch.instrumentation.a2a import A2AInstrumentor
from hopwatch.instrumentation.asyncio import AsyncioInstrumentor
from ticking import collect

tracer = trace.get_tracer("test")


@contextlib.contextmanager
def instrumented(*, with_us=True):
    """A program's cascade with asyncio and the A2A SDK instrumented; or nothing of it."""
    if not with_us:
        yield
        return
    AsyncioInstrumentor().instrument()
    A2AInstrumentor().instrument()
    try:
        with hopwatch.cascade("root"):
            yield
    finally:
        A2AInstrumentor().uninstrument()
        AsyncioInstrumentor().uninstrument()


def both(story):
    """What a story sees without us, and with us."""
    seen = []
    for with_us in (False, True):
        with instrumented(with_us=with_us):
            seen.append(asyncio.run(asyncio.wait_for(story(), 90)))
    return seen


# Functions --------------------------------------------------------------------------------------------------------


def owners():
    from a2a.client.transports.jsonrpc import JsonRpcTransport
    from a2a.client.transports.rest import RestTransport
    from a2a.server.agent_execution.active_task import ActiveTask, EventConsumer
    from a2a.server.events.event_queue_v2 import EventQueueSource
    from a2a.server.request_handlers import DefaultRequestHandlerV2, LegacyRequestHandler
    from a2a.server.tasks import BasePushNotificationSender
    from a2a.server.tasks.task_manager import TaskManager
    from starlette.applications import Starlette

    import test_instrumentors

    return [
        *test_instrumentors.owners(), JsonRpcTransport, RestTransport, ActiveTask, EventConsumer, EventQueueSource,
        DefaultRequestHandlerV2, LegacyRequestHandler, BasePushNotificationSender, TaskManager, Starlette,
    ]  # fmt: skip


def description(function):
    """What others ask a function for."""
    try:
        signature = str(inspect.signature(function))
    except (TypeError, ValueError):
        signature = None
    # Before 3.12 what is no coroutine function can say that it passes for one to asyncio alone.
    asked = inspect if sys.version_info >= (3, 12) else asyncio
    return {
        "signature": signature,
        "name": (function.__name__, function.__qualname__, function.__module__, function.__doc__),
        "awaited": asked.iscoroutinefunction(function),
        "iterated": inspect.isasyncgenfunction(function),
        "routine": inspect.isroutine(function),
    }


def test_what_is_replaced_has_the_signature_the_name_and_the_kind_that_it_had():
    found = owners()
    before = {
        (owner, name): description(getattr(owner, name))
        for owner in found
        for name, value in vars(owner).items()
        if callable(value) and isinstance(value, types.FunctionType)
    }
    functions = {key: vars(key[0])[key[1]] for key in before}
    with instrumented():
        replaced = [key for key in before if vars(key[0])[key[1]] is not functions[key]]
        after = {key: description(getattr(*key)) for key in before}
        # Whoever asks whether a class overrides a method compares two look-ups. Before 3.12 they are proxies of coroutine functions.
        assert [
            key
            for key in replaced
            if getattr(*key) is not getattr(*key)
            and (sys.version_info >= (3, 12) or not inspect.iscoroutinefunction(functions[key]))
        ] == []
    assert len(replaced) > 30
    assert {key: after[key] for key in replaced} == {key: before[key] for key in replaced}


def test_a_mock_made_to_a_pattern_of_what_is_replaced_is_awaited_where_the_pattern_is():
    def kinds():
        return {
            (cls.__name__, name): type(getattr(mock.create_autospec(cls, instance=True), name)).__name__
            for cls, name in (
                (asyncio.Lock, "acquire"),
                (asyncio.Event, "wait"),
                (asyncio.Semaphore, "acquire"),
                (asyncio.Condition, "wait"),
                (asyncio.Queue, "put_nowait"),
            )
        }

    before = kinds()
    with instrumented():
        assert kinds() == before


def test_no_name_of_asyncio_leads_to_another_object_so_that_code_that_compares_them_goes_on():
    before = {
        (module.__name__, name): value
        for module in (asyncio, asyncio.tasks, asyncio.futures, asyncio.queues, asyncio.locks, asyncio.events)
        for name, value in vars(module).items()
    }
    made = asyncio.create_task
    with instrumented():
        assert asyncio.create_task is made
        for (module, name), value in before.items():
            assert vars(sys.modules[module])[name] is value, (module, name)


# Representations --------------------------------------------------------------------------------------------------


def plain(text):
    """A representation without what is another in each run."""
    return re.sub(r"Task-\d+", "Task-n", re.sub(r"0x[0-9a-f]+", "0x", text))


def ring(*_):
    pass


def test_tasks_timers_and_what_is_waited_for_are_represented_as_without_us():
    async def work(lock, queue, event):
        async with lock:
            await event.wait()
        return queue.get_nowait()

    async def story():
        lock, queue, event, semaphore = asyncio.Lock(), asyncio.Queue(), asyncio.Event(), asyncio.Semaphore(1)
        queue.put_nowait(1)
        first = asyncio.create_task(work(lock, queue, event), name="first")
        second = asyncio.create_task(work(lock, queue, event), name="second")
        third = asyncio.create_task(queue.join(), name="third")
        third.add_done_callback(ring)
        together = asyncio.gather(first, second, return_exceptions=True)
        timer = asyncio.get_running_loop().call_later(60, ring, 1)
        await asyncio.sleep(0)
        await semaphore.acquire()
        out = [plain(repr(each)) for each in (first, second, third, together, lock, queue, event, semaphore)]
        out.append(re.sub(r"when=[0-9.]+", "when", plain(repr(timer))))
        same = [asyncio.get_running_loop().call_at(2**40, ring, 1) for _ in range(2)]
        out.append((same[0] == same[1], same[0] == timer, same[0] <= same[1], len({*same})))
        for each in (*same, timer):
            each.cancel()
        event.set()
        out += map(repr, await together)
        queue.task_done()
        await third
        semaphore.release()
        out += [plain(repr(each)) for each in (first, second, third, together, lock, queue, semaphore)]
        return out

    bare, ours = both(story)
    assert ours == bare
    assert "cb=[gather" in bare[0]
    assert "cb=[ring" in bare[2]


def test_methods_of_the_sdk_are_represented_compared_and_told_apart_as_without_us():
    from a2a.server.tasks import BasePushNotificationSender, InMemoryPushNotificationConfigStore

    async def story():
        store = InMemoryPushNotificationConfigStore()
        one, other = (BasePushNotificationSender(None, store) for _ in range(2))
        method = one._dispatch_notification
        return [
            plain(repr(method)),
            plain(repr(BasePushNotificationSender._dispatch_notification)),
            method == one._dispatch_notification,
            method == other._dispatch_notification,
            len({method, one._dispatch_notification}),
            isinstance(method, types.MethodType),
            method.__self__ is one,
        ]

    bare, ours = both(story)
    assert ours == bare


# Copies -----------------------------------------------------------------------------------------------------------


class FailureError(Exception):
    pass


def test_what_could_be_pickled_or_copied_still_can_and_comes_back_the_same():
    from a2a.server.tasks.task_manager import TaskManager

    async def fail():
        raise FailureError("one", 2)

    async def story():
        out = []
        (error,) = await asyncio.gather(asyncio.create_task(fail()), return_exceptions=True)
        again = pickle.loads(pickle.dumps(error))
        out.append((type(again), again.args))
        queue = asyncio.Queue()
        queue.put_nowait({"text": "item", "numbers": [1, 2]})
        out.append(pickle.loads(pickle.dumps(queue.get_nowait())))
        functions = (
            asyncio.Lock.acquire,
            asyncio.Queue.put_nowait,
            asyncio.BaseEventLoop.create_task,
            threading.Thread.start,
        )
        out += [pickle.loads(pickle.dumps(function)) is function for function in functions]
        # As a pool of processes does with what it is given to call.
        for method in (TaskManager.save_task_event, ring):
            again = pickle.loads(pickle.dumps(method))
            out.append((again == method, again.__qualname__))
        manager = TaskManager(
            task_id="task", context_id="context", task_store=None, initial_message=None, context=None
        )
        method = pickle.loads(pickle.dumps(manager.save_task_event))
        out.append((type(method.__self__).__name__, method.__self__.task_id, method.__name__))
        out.append(copy.copy(manager.save_task_event) == manager.save_task_event)
        deep = copy.deepcopy(manager.save_task_event)
        out.append((deep == manager.save_task_event, deep.__self__ is manager, deep.__self__.task_id))
        return out

    bare, ours = both(story)
    assert ours == bare
    assert bare[0] == (FailureError, ("one", 2))


# Weak references --------------------------------------------------------------------------------------------------


def test_weak_references_live_and_die_as_without_us():
    from a2a.server.tasks import InMemoryTaskStore
    from a2a.server.tasks.task_manager import TaskManager

    class Service:
        def ring(self):
            pass

    async def work(gate):
        await gate.wait()

    async def story():
        died = []
        gate, lock, queue, semaphore = asyncio.Event(), asyncio.Lock(), asyncio.Queue(), asyncio.Semaphore()
        service, manager = (
            Service(),
            TaskManager(
                task_id="t",
                context_id="c",
                task_store=InMemoryTaskStore(),
                initial_message=None,
                context=None,
            ),
        )
        coroutine = work(gate)
        task = asyncio.create_task(coroutine)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(60, service.ring)
        future = loop.run_in_executor(None, len, "four")
        thread = threading.Thread(target=len, args=("four",))
        thread.start()
        async with lock, semaphore:
            queue.put_nowait(service)
        kept = {"gate": gate, "lock": lock, "queue": queue, "semaphore": semaphore, "service": service}
        kept |= {
            "coroutine": coroutine,
            "task": task,
            "timer": timer,
            "future": future,
            "thread": thread,
            "manager": manager,
        }
        by_object = weakref.WeakKeyDictionary({value: name for name, value in kept.items()})
        for name, value in kept.items():
            weakref.finalize(value, died.append, name).atexit = False
        method = weakref.WeakMethod(manager.save_task_event)
        out = [sorted(by_object.values()), method() == manager.save_task_event]
        await asyncio.sleep(0)
        gate.set()
        await task
        await future
        await asyncio.to_thread(thread.join)
        timer.cancel()
        queue.get_nowait()
        del gate, lock, queue, semaphore, service, coroutine, task, timer, future, thread, manager, value
        kept.clear()
        until = time.monotonic() + 30
        while not {*by_object.values()} <= {"timer", "service"} and time.monotonic() < until:
            await asyncio.sleep(0.001)  # a thread lets go of its job when it gets a turn after that
            collect()
        # asyncio itself keeps a timer that was cancelled, until its time has come or there are many.
        out += [
            sorted(set(died) - {"timer", "service"}),
            sorted(set(by_object.values()) - {"timer", "service"}),
            method(),
        ]
        return out

    bare, ours = both(story)
    assert ours == bare
    assert bare[3] == []


# Contexts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON"])
def test_who_reads_a_stream_is_in_a_context_of_its_own_between_its_events(binding):
    from test_a2a import agent, client, request

    mine = contextvars.ContextVar("mine", default="nothing")

    def around():
        hop = hopwatch.current()
        span = trace.get_current_span().get_span_context().span_id
        return None if hop is None else hop.name, span, mine.get()

    async def story():
        seen = set()
        async with agent(binding=binding) as url, client(url, binding=binding, streaming=True) as peer:
            mine.set("something")
            with tracer.start_as_current_span("reading"):
                before = around()
                count = 0
                async for _ in peer.send_message(request()):
                    count += 1
                    seen.add(around())
                    mine.set("something")
                after = around()
        return count, seen == {before}, after == before

    with instrumented():
        assert asyncio.run(asyncio.wait_for(story(), 90)) == (4, True, True)


def test_an_async_generator_of_the_application_leaks_no_hop_across_a_yield():
    async def numbers(lock, queue):
        for number in range(3):
            async with lock:
                queue.put_nowait(number)
                await asyncio.create_task(asyncio.sleep(0))
            yield await queue.get()
            queue.task_done()

    async def story():
        lock, queue = asyncio.Lock(), asyncio.Queue()
        before = hopwatch.current()
        return [
            (number, hopwatch.current() == before, trace.get_current_span().get_span_context().span_id)
            async for number in numbers(lock, queue)
        ]

    with instrumented():
        inside = trace.get_current_span().get_span_context().span_id
        assert asyncio.run(story()) == [(number, True, inside) for number in range(3)]
