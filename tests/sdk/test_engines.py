"""Is a message three hops and a push two, whichever release of a2a-sdk it is, with each engine and binding of it?"""

import asyncio
import contextlib
import contextvars
import functools
import gc
from collections import Counter

import any_release
import pytest
from any_release import (
    BINDINGS,
    ENGINES,
    OLD,
    RELEASE,
    agent,
    client,
    complete,
    state_of_push,
    task_of,
    text_part,
)
from starlette.responses import JSONResponse
from starlette.routing import Route

import hopwatch
from exported import cascades, fresh, only_cascade, ours, tree, verdict
from hopwatch import attributes as names
from hopwatch.instrumentation import a2a
from hopwatch.instrumentation.a2a import A2AInstrumentor, missing

MESSAGE = [("send", [("request", [("execution", [])])])]

engines = pytest.mark.parametrize("engine", ENGINES)
bindings = pytest.mark.parametrize("binding", BINDINGS)


pytestmark = pytest.mark.usefixtures("a2a_instrumented", "empty")


def run(story):
    asyncio.run(asyncio.wait_for(story(), 100))


def left_behind(engine):
    """What the SDK itself leaves pending for ever of a task that somebody subscribed to, or pushed of: a part of its sentence."""
    if engine == "active" and RELEASE < (1, 2):
        return "which has left, to acknowledge "
    return None


def left_behind_of_stream(engine, binding):
    """The same of a message whose events are streamed."""
    return left_behind(engine) if binding == "GRPC" else None


@pytest.fixture
def patient(monkeypatch):
    """What takes long on a busy machine is not shown for it."""
    monkeypatch.setenv("HOPWATCH_REVEAL_AFTER", "3600")
    fresh()


@pytest.fixture
def rather_patient(engine, request, monkeypatch):
    """The same, but where the SDK leaves something behind: that is known by how long it takes."""
    if left_behind(engine) is None:
        request.getfixturevalue("patient")
    else:
        monkeypatch.setenv("HOPWATCH_REVEAL_AFTER", "1")
        fresh()


async def over(but=None):
    """Wait until this process has nothing open any more; or nothing but the end of tasks, which waits for `but` for good.

    Returns whether it is the latter.
    """
    for _ in range(6000):
        pending = hopwatch.pending()
        if not pending:
            return False
        if (
            but is not None
            and {each.name for each in pending} == {"delivery of the last events"}
            and all(but in each.waits_on["what"] and each.waits_on["moves"] is False for each in pending)
        ):
            return True
        await asyncio.sleep(0.01)
    raise AssertionError(hopwatch.pending())


async def until(found):
    for _ in range(6000):
        if found():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(hopwatch.pending())


def count(*found):
    """How many hops of each kind there are, with the names of those that need not be there."""
    kinds = ("send", "request", "execution", "push", "webhook")
    return Counter(
        each.kind
        if each.kind in kinds
        else f"{each.kind} {each.name} ({each.location}, {each.attributes.get('hopwatch.hop.waits')})"
        for hops in found
        for each in hops.values()
    )


def ended():
    """The spans of hops that have ended: on a busy machine there are markers of open ones as well."""
    return [span for span in ours() if span.attributes[names.RECORD] == names.RECORD_END]


def hop(hops, kind):
    (found,) = [each for each in hops.values() if each.kind == kind]
    return found


def inbox(path="/hook"):
    """A webhook, and what was pushed to it."""
    pushed = []

    async def webhook(request):
        pushed.append(state_of_push(await request.json()))
        return JSONResponse({})

    return Route(path, webhook, methods=["POST"]), pushed


def test_this_release_has_every_seam_that_it_ought_to_have():
    assert missing == []


@pytest.mark.usefixtures("patient")
@engines
@bindings
def test_a_blocking_message_is_a_send_a_request_and_an_execution(engine, binding):
    async def story():
        async with agent(engine=engine, binding=binding) as there, client(there.url, binding=binding) as peer:
            (answer,) = await peer.send()
            await over()
        hops = only_cascade()
        assert tree(hops) == MESSAGE
        assert len(ended()) == 3
        send, served, ran = hop(hops, "send"), hop(hops, "request"), hop(hops, "execution")
        assert (send.name, served.name, ran.name) == ("SendMessage", "SendMessage", "Executor.execute")
        assert (send.peer, send.peer_hop) == ("instrumented", served.id)
        assert task_of(answer) == (send.task_id, "TASK_STATE_COMPLETED")
        assert send.task_id == ran.task_id
        assert ran.task_state == send.task_state == "TASK_STATE_COMPLETED"
        assert verdict(hops).verdict == "settled"

    run(story)


@pytest.mark.usefixtures("rather_patient")
@engines
@bindings
def test_a_streamed_message_is_the_same_three_hops(engine, binding):
    async def story():
        async with (
            agent(engine=engine, binding=binding) as there,
            client(there.url, binding=binding, streaming=True) as peer,
        ):
            assert len(await peer.send()) == 4
            if await over(left_behind_of_stream(engine, binding)):
                return
        hops = only_cascade()
        assert tree(hops) == MESSAGE
        assert len(ended()) == 3
        assert hop(hops, "send").name == "SendStreamingMessage"
        assert hop(hops, "send").task_state == hop(hops, "execution").task_state == "TASK_STATE_COMPLETED"
        assert verdict(hops).verdict == "settled"

    run(story)


@engines
@bindings
def test_what_is_answered_at_once_is_three_hops_however_long_it_takes_and_each_push_two(engine, binding):
    async def story():
        route, pushed = inbox()
        go_on = asyncio.Event()

        async def work(updater):
            await updater.start_work()
            await go_on.wait()
            await complete(updater)

        async with (
            agent(work, route, engine=engine, binding=binding) as there,
            client(there.url, binding=binding) as peer,
        ):
            (answer,) = await peer.send(webhook=there.hook, now=True)
            assert task_of(answer)[1] != "TASK_STATE_COMPLETED"
            # Longer than what is invisible may take before it is shown: nothing of this is.
            await asyncio.sleep(1.6)
            assert {each.kind for each in hopwatch.pending()} >= {"execution"}
            go_on.set()
            await over()
        posts = len(pushed)
        assert pushed[-1] == "TASK_STATE_COMPLETED"
        hops = only_cascade()
        assert count(hops) == {"send": 1, "request": 1, "execution": 1, "push": posts, "webhook": posts}
        assert not any(each.late for each in hops.values())
        ran = hop(hops, "execution")
        served = hop(hops, "request")
        assert served.ended < ran.ended
        for each in hops.values():
            if each.kind == "push":
                # What the request pushes before it answers is the request's.
                assert each.parent in (ran.id, served.id)
                assert each.task_id == ran.task_id
        assert ran.task_state == "TASK_STATE_COMPLETED"
        assert verdict(hops).verdict == "settled"

    run(story)


@pytest.mark.usefixtures("rather_patient")
@engines
@bindings
def test_each_of_several_webhooks_of_a_task_gets_every_push_and_each_is_two_hops(engine, binding):
    async def story():
        places = [inbox(), inbox("/second"), inbox("/third")]
        go_on = asyncio.Event()

        async def work(updater):
            await updater.start_work()
            await go_on.wait()
            await complete(updater)

        async with (
            agent(work, *(route for route, _ in places), engine=engine, binding=binding) as there,
            client(there.url, binding=binding) as peer,
        ):
            (answer,) = await peer.send(webhook=there.hook, now=True)
            for name in ("second", "third"):
                await peer.add_webhook(task_of(answer)[0], there.hook.replace("hook", name), name)
            go_on.set()
            await over(left_behind(engine))
        assert {pushed[-1] for _, pushed in places} == {"TASK_STATE_COMPLETED"}
        posts = sum(len(pushed) for _, pushed in places)
        hops = only_cascade()
        found = count(hops)
        assert (found["push"], found["webhook"], found["execution"]) == (posts, posts, 1)
        for each in hops.values():
            if each.kind == "push":
                assert each.parent in (hop(hops, "execution").id, hop(hops, "request").id)
                assert (each.peer, hops[each.peer_hop].kind) == ("instrumented", "webhook")
        if left_behind(engine) is None:
            assert verdict(hops).verdict == "settled"

    run(story)


@engines
@bindings
@pytest.mark.parametrize("how", ["answers slowly", "answers 503", "never answers"])
def test_a_webhook_that_does_not_do_well_is_told_of_and_fails_nobody_but_the_push(how, engine, binding):
    async def story():
        go_on = asyncio.Event()
        if how == "answers 503":
            go_on.set()

        async def webhook(request):
            await request.body()
            await go_on.wait()
            return JSONResponse({}, 503 if how == "answers 503" else 200)

        def held(*kinds):
            return [each for each in hopwatch.pending() if each.kind in kinds and each.waits_on]

        async with (
            agent(
                complete, Route("/hook", webhook, methods=["POST"]), engine=engine, binding=binding,
                patience=0.2 if how == "never answers" else 60,
            ) as there,
            client(there.url, binding=binding) as peer,
        ):  # fmt: skip
            asking = asyncio.create_task(peer.send(webhook=there.hook, now=True))
            if how == "answers slowly":
                # The push waits for the webhook, and moves; what the webhook waits for, nobody has set.
                await until(lambda: [each for each in held("push") if each.waits_on["kind"] == "socket"])
                await until(lambda: [each for each in held("webhook") if not each.waits_on["moves"]])
                assert verdict(hops_of(cascades())).verdict != "settled"
            elif how == "never answers":
                await asking
                await until(lambda: not held("push", "execution", "request", "send"))
                # Each push has been given up, and what has taken it goes on.
                await until(lambda: held("webhook"))
                assert verdict(hops_of(cascades())).verdict != "settled"
            go_on.set()
            await asking
            await over(left_behind(engine))
        hops = only_cascade()
        pushes = [each for each in hops.values() if each.kind == "push"]
        assert pushes
        assert {each.outcome for each in pushes} == {"finished" if how == "answers slowly" else "failed"}
        assert hop(hops, "execution").outcome == "finished"
        assert hop(hops, "execution").task_state == "TASK_STATE_COMPLETED"
        if left_behind(engine) is None:
            assert verdict(hops).verdict == "settled"

    run(story)


def hops_of(found):
    """The hops of all cascades."""
    return {key: each for hops in found.values() for key, each in hops.items()}


@engines
@pytest.mark.parametrize("now", [True, False], ids=["answered", "awaited"])
def test_work_that_hangs_holds_its_execution_and_nothing_of_it_moves(engine, now):
    async def story():
        never = asyncio.get_running_loop().create_future()

        async def work(updater):
            await updater.start_work()
            await never
            await updater.complete()

        async with agent(work, engine=engine) as there, client(there.url) as peer:
            asking = asyncio.create_task(peer.send(now=now))

            def stands_still():
                left = {
                    each.kind: (each.waits_on["kind"], each.waits_on["moves"])
                    for each in hopwatch.pending()
                    if each.waits_on
                }
                if left.get("execution") != ("future", False):
                    return False
                # What has not been answered waits for an event. That the SDK of 0.3 looks for one twice a second brings none.
                return "request" not in left if now else left.get("request") == ("queue_get", False)

            await until(stands_still)
            never.set_result(None)
            await asking
            await over()
        assert verdict(only_cascade()).verdict == "settled"

    run(story)


@engines
@pytest.mark.parametrize("unread", [0, 3])
def test_an_execution_that_raises_has_failed(engine, unread):
    async def story():
        async def work(updater):
            await updater.start_work()
            for _ in range(unread):  # the SDK of 0.3 stores none of those that it has not read by then
                await updater.add_artifact([text_part("a piece")])
            raise RuntimeError("no more paper")

        async with agent(work, engine=engine) as there, client(there.url) as peer:
            with contextlib.suppress(Exception):
                await peer.send()
            await over()
        hops = only_cascade()
        ran = hop(hops, "execution")
        assert ran.outcome == "failed"
        assert "no more paper" in ran.reason
        assert not any(each.late for each in hops.values())

    run(story)


@pytest.mark.usefixtures("rather_patient")
@engines
@bindings
@pytest.mark.parametrize("wanted", ["INPUT", "AUTH"])
def test_a_second_message_to_a_task_is_a_cascade_of_its_own_with_a_link_to_the_first(wanted, binding, engine):
    interrupted = f"TASK_STATE_{wanted}_REQUIRED"

    async def story():
        route, pushed = inbox()
        asked = False

        async def work(updater):
            nonlocal asked
            if not asked:
                asked = True
                await (updater.requires_input() if wanted == "INPUT" else updater.requires_auth())
            else:
                await complete(updater)

        async with (
            agent(work, route, engine=engine, binding=binding) as there,
            client(there.url, binding=binding) as peer,
        ):
            (first,) = await peer.send(webhook=there.hook)
            task, state = task_of(first)
            assert state == interrupted
            await over()
            context = there.executor.contexts[0].context_id
            (second,) = await peer.send("blue", task=task, context=context, webhook=there.hook)
            assert task_of(second) == (task, "TASK_STATE_COMPLETED")
            await over(left_behind(engine))
        assert pushed[-1] == "TASK_STATE_COMPLETED"
        found = sorted(cascades().values(), key=lambda hops: min(each.started for each in hops.values()))
        assert len(found) == 2
        for hops in found:
            ran = hop(hops, "execution")
            assert ran.task_id == task
            pushes = [each for each in hops.values() if each.kind == "push"]
            assert pushes
            assert all(each.parent in hops for each in pushes)
            assert not any(each.late for each in hops.values())
        first_ran, second_ran = (hop(hops, "execution") for hops in found)
        assert (first_ran.task_state, second_ran.task_state) == (interrupted, "TASK_STATE_COMPLETED")
        states = [
            [
                each.task_state
                for each in sorted(hops.values(), key=lambda each: each.started)
                if each.kind == "push"
            ][-1]
            for hops in found
        ]
        assert states == [interrupted, "TASK_STATE_COMPLETED"]
        (span,) = [
            span
            for span in ours()
            if span.attributes[names.HOP_KIND] == "execution"
            and f"{span.context.trace_id:032x}" == second_ran.cascade
            and span.attributes[names.RECORD] == names.RECORD_END
        ]
        assert [f"{link.context.span_id:016x}" for link in span.links] == [first_ran.id]

    run(story)


@engines
@bindings
def test_a_task_that_is_cancelled_leaves_nothing_behind(engine, binding):
    async def story():
        started = asyncio.Event()

        async def work(updater):
            await updater.start_work()
            started.set()
            await asyncio.get_running_loop().create_future()

        async with (
            agent(work, engine=engine, binding=binding) as there,
            client(there.url, binding=binding) as peer,
        ):
            (answer,) = await peer.send(now=True)
            await asyncio.wait_for(started.wait(), 60)
            await peer.cancel_task(task_of(answer)[0])
            if RELEASE < (0, 3, 26):
                # 0.3.22 looks for events of it for ever: nobody closes its queue.
                await until(lambda: [each.kind for each in hopwatch.pending()] == ["execution", "task"])
                (left,) = [each for each in hopwatch.pending() if each.kind == "task"]
                assert left.name == "ResultAggregator._continue_consuming"
                assert left.waits_on["moves"] is False
                return
            await over()
        found = cascades()
        outcomes = {
            each.outcome for hops in found.values() for each in hops.values() if each.kind == "execution"
        }
        assert outcomes == {"cancelled"}

    run(story)


@pytest.mark.usefixtures("rather_patient")
@engines
@bindings
def test_a_subscriber_who_reads_to_the_end_is_two_hops_of_its_own(engine, binding):
    async def story():
        go_on = asyncio.Event()
        subscribed = asyncio.Event()

        async def work(updater):
            await updater.start_work()
            await go_on.wait()
            await complete(updater)

        async with (
            agent(work, engine=engine, binding=binding) as there,
            client(there.url, binding=binding, streaming=True) as peer,
            client(there.url, binding=binding) as other,
        ):
            (answer,) = await other.send(now=True)

            async def read():
                async for _ in peer.subscribe(task_of(answer)[0]):
                    subscribed.set()

            reading = asyncio.create_task(read())
            if OLD or engine == "legacy":
                # Nothing is sent to a subscriber before the next event.
                queues = there.handler._queue_manager._task_queue
                await until(lambda: any(queue._children for queue in queues.values()))
            else:
                await asyncio.wait_for(subscribed.wait(), 60)
            go_on.set()
            await asyncio.wait_for(reading, 60)
            if await over(left_behind(engine)):
                return
        found = count(*cascades().values())
        # Before 3.12 `wait_for` makes a task of what it waits for, and this one fails when its queue is closed.
        for each in [
            each for each in found if each.startswith("task EventQueue") and ".dequeue_event " in each
        ]:
            del found[each]
        assert found == {"send": 2, "request": 2, "execution": 1}

    run(story)


@engines
@bindings
def test_a_caller_who_leaves_in_the_middle_of_a_stream_leaves_the_work_counted(engine, binding):
    async def story():
        go_on = asyncio.Event()

        async def work(updater):
            await updater.start_work()
            await go_on.wait()
            await complete(updater)

        async with agent(work, engine=engine, binding=binding) as there:
            async with client(there.url, binding=binding, streaming=True) as peer:
                stream = peer.stream()
                async for _ in stream:
                    break
                await stream.aclose()
            await asyncio.sleep(1.3)
            assert [each.kind for each in hopwatch.pending() if each.kind == "execution"]
            go_on.set()
            await over()
        hops = only_cascade()
        assert hop(hops, "execution").outcome == "finished"
        assert hop(hops, "execution").task_state == "TASK_STATE_COMPLETED"
        assert not any(each.late for each in hops.values())

    run(story)


@engines
def test_with_every_detail_a_push_is_still_the_executions_and_all_of_it_settles(engine, monkeypatch):
    monkeypatch.setenv("HOPWATCH_DETAIL", "all")
    fresh()

    async def story():
        route, pushed = inbox()
        async with agent(complete, route, engine=engine) as there, client(there.url) as peer:
            await peer.send(webhook=there.hook, now=True)
            await over(left_behind(engine))
        assert pushed[-1] == "TASK_STATE_COMPLETED"
        hops = only_cascade()
        assert {"send", "request", "execution", "push", "webhook"} <= {each.kind for each in hops.values()}
        if left_behind(engine) is None:
            assert verdict(hops).verdict == "settled"

    run(story)


@pytest.mark.usefixtures("patient")
@engines
def test_messages_at_once_are_as_many_cascades_and_all_of_them_settle(engine):
    at_once(engine, 20)


def at_once(engine, many):
    async def story():
        async with agent(engine=engine) as there, client(there.url) as peer:
            await asyncio.gather(*(peer.send(now=bool(number % 2)) for number in range(many)))
            await over()
        found = list(cascades().values())
        assert len(found) == many
        for hops in found:
            assert tree(hops) == MESSAGE
            assert hop(hops, "execution").task_state == "TASK_STATE_COMPLETED"
            assert verdict(hops).verdict == "settled"

    run(story)


@engines
@pytest.mark.parametrize("who", ["a task of its own", "somebody else"])
def test_a_task_that_moves_after_its_execution_is_settled_once_it_is_completed(who, engine, monkeypatch):
    monkeypatch.setenv("HOPWATCH_REVEAL_AFTER", "0.05")
    fresh()

    async def story():
        go_on, kept = asyncio.Event(), []

        async def later(updater):
            await go_on.wait()
            await updater.complete()

        async def work(updater):
            await updater.start_work()
            if who == "somebody else":
                kept.append((updater, None))
            else:
                kept.append((updater, asyncio.create_task(later(updater))))

        def execution_has_ended():
            return [each for each in ended() if each.attributes[names.HOP_KIND] == "execution"]

        async with agent(work, engine=engine) as there, client(there.url) as peer:
            (answer,) = await peer.send(now=True)
            await until(execution_has_ended)
            if who == "somebody else":
                await over()
                assert verdict(only_cascade()).verdict == "stranded"
                gc.collect()  # nobody has the execution any more
                await contextvars.Context().run(asyncio.create_task, kept[0][0].complete())
            else:
                go_on.set()
                await kept[0][1]
            state = ""

            async def moved():
                nonlocal state
                state = task_of(await peer.get_task(task_of(answer)[0]))[1]
                return state == "TASK_STATE_COMPLETED" or engine != "active"

            while not await moved():
                await asyncio.sleep(0.01)
            await over()
        # The other engines close the queue when `execute` returns: what comes later is never stored, and the task works for ever.
        assert state == ("TASK_STATE_COMPLETED" if engine == "active" else "TASK_STATE_WORKING")
        assert verdict(only_cascade()).verdict == ("settled" if engine == "active" else "stranded")

    run(story)


@pytest.mark.usefixtures("rather_patient")
@engines
def test_what_a_thread_without_context_reports_belongs_to_the_message_that_it_works_for(engine):
    async def story():
        route, pushed = inbox()
        rounds = []

        async def work(updater):
            loop = asyncio.get_running_loop()
            rounds.append(updater)

            def job():
                end = updater.requires_input() if len(rounds) == 1 else updater.complete()
                asyncio.run_coroutine_threadsafe(end, loop).result(60)

            await loop.run_in_executor(None, job)

        async with agent(work, route, engine=engine) as there, client(there.url) as peer:
            (answer,) = await peer.send(webhook=there.hook)
            await over(left_behind(engine))
            before = len(pushed)
            (first,) = cascades().values()
            judged = verdict(first).verdict
            task = answer[0] if isinstance(answer, tuple) else answer.task
            await peer.send(task=task.id, context=task.context_id, webhook=there.hook)
            await over(left_behind(engine))
        assert pushed[before - 1] == "TASK_STATE_INPUT_REQUIRED"
        assert pushed[-1] == "TASK_STATE_COMPLETED"
        earlier = hop(first, "execution").id
        both = cascades().values()
        (again,) = [hops for hops in both if earlier in hops]
        (second,) = [hops for hops in both if earlier not in hops]
        for hops, posts in ((again, before), (second, len(pushed) - before)):
            assert (count(hops)["push"], count(hops)["webhook"]) == (posts, posts)
            assert [each.kind for each in hops.values() if each.parent is None] == ["send"]
            for each in hops.values():
                if each.kind == "push":
                    assert hops[each.parent].kind in ("execution", "request")
        if left_behind(engine) is None:
            assert (judged, verdict(second).verdict) == ("waiting", "settled")

    run(story)


@pytest.mark.usefixtures("patient")
@engines
def test_an_executor_whose_execute_was_decorated_where_it_was_made_has_its_execution(engine, monkeypatch):
    def limited(function):
        room = asyncio.Semaphore(2)

        @functools.wraps(function)
        async def execute(*args, **kwargs):
            async with room:
                return await function(*args, **kwargs)

        return execute

    made = any_release.Executor.__init__

    def make(self, work):
        made(self, work)
        self.execute = self.plain = limited(self.execute)

    monkeypatch.setattr(any_release.Executor, "__init__", make)

    async def story():
        async with agent(engine=engine) as there, client(there.url) as peer:
            await peer.send()
            await over()
            executor = there.executor
            assert executor.execute is not executor.plain
        A2AInstrumentor().uninstrument()
        try:
            assert executor.execute is executor.plain
        finally:
            A2AInstrumentor().instrument()
        hops = only_cascade()
        assert tree(hops) == MESSAGE
        assert hop(hops, "execution").task_state == "TASK_STATE_COMPLETED"
        assert verdict(hops).verdict == "settled"

    run(story)


@pytest.mark.usefixtures("patient")
@engines
def test_an_execution_that_is_older_than_all_that_are_remembered_is_not_forgotten_while_it_works(
    engine, monkeypatch
):
    monkeypatch.setattr(a2a, "MAX_EXECUTIONS", 2)

    async def story():
        go_on, first = asyncio.Event(), []

        async def work(updater):
            await updater.start_work()
            if not first:
                first.append(updater.task_id)
                await go_on.wait()
            await complete(updater)

        async with agent(work, engine=engine) as there, client(there.url) as peer:
            await peer.send(now=True)
            await until(lambda: first)
            for _ in range(5):
                await peer.send()
            go_on.set()
            await over()
        states = {
            each.task_state
            for hops in cascades().values()
            for each in hops.values()
            if each.kind == "execution"
        }
        assert states == {"TASK_STATE_COMPLETED"}
        assert {verdict(hops).verdict for hops in cascades().values()} == {"settled"}

    run(story)
