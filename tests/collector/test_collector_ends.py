"""What is known of how a process ended: its own word, or what its black box says?"""

from hopwatch.collector.batch import Batch, Sender
from hopwatch.collector.store.liveness import Liveness
from hopwatch.records import Heartbeat, Shutdown

WORKER = "a" * 16


def told(*, at, way="SIGTERM", found=False, **pending):
    batch = Batch(arrived=at)
    batch.shutdowns.append(Shutdown(WORKER, "worker", 7, at, way, pending, found=found))
    if not found:
        batch.senders[WORKER] = Sender("worker", None)
    return batch


def beat(*, at):
    batch = Batch(
        arrived=at, heartbeats=[Heartbeat(WORKER, "worker", at=at, open=1, dropped=0, pid=7, sampled=0)]
    )
    batch.senders[WORKER] = Sender("worker", None)
    return batch


def known(*batches):
    processes = Liveness()
    for batch in batches:
        processes.hear(batch)
    found = processes.copies([WORKER]).get(WORKER)
    return found and (found.way, found.ended, found.pending, found.heard)


def test_a_process_whose_box_was_found_has_ended_and_that_is_no_sign_of_life():
    assert known(beat(at=5), told(at=9, way="process_killed", found=True, execution=1)) == (
        "process_killed", 9, {"execution": 1}, 5,
    )  # fmt: skip


def test_what_a_process_said_of_its_own_end_goes_before_what_its_box_says():
    own = told(at=5, task=2)
    box = told(at=9, way="pending at shutdown: SIGTERM", found=True, execution=1)
    assert known(own, box) == ("SIGTERM", 5, {"task": 2}, 5)


def test_a_process_that_goes_on_after_its_box_was_found_has_not_ended():
    assert known(beat(at=5), told(at=9, way="process_killed", found=True), beat(at=12)) == ("", 0, {}, 12)


def test_a_process_that_never_spoke_is_not_known_by_its_box_alone():
    assert known(told(at=9, way="process_killed", found=True, execution=1)) is None
