"""How is it called? Every attribute, metric, event and header name that leaves a process.

Names that OpenTelemetry, or its draft conventions for A2A, already have are used as they are; the rest
begins with `hopwatch.`. Nothing else in the package spells such a name out.
"""

from __future__ import annotations

from typing import Final

SCOPE: Final = "hopwatch"
"""Name of the instrumentation scope of every span and metric of ours."""

# What kind of record a span is. A span without this attribute is not ours and is ignored.
RECORD: Final = "hopwatch.record"
RECORD_END: Final = "end"
"""The hop's own span: the hop has closed."""
RECORD_OPEN: Final = "open"
"""A marker: the hop that is this span's parent is open."""
RECORD_LATE: Final = "late"
"""A correction: the hop that is this span's parent, though closed, got one more child."""
RECORD_ABANDONED: Final = "abandoned"
"""Told by somebody else: the hop that is this span's parent was open when its process ended."""
RECORD_HEARTBEAT: Final = "heartbeat"
"""The process lives, and so many of its hops are open."""
RECORD_GONE: Final = "gone"
"""The hop that is this span's parent is open, and its process is about to be replaced: its end, unless another one comes."""
RECORD_SHUTDOWN: Final = "shutdown"
"""The process ends, in this way, and so much of its work was pending."""

INSTANCE: Final = "hopwatch.instance"
"""16 hex digits that one process draws for itself (a forked child draws anew)."""

HOP_KIND: Final = "hopwatch.hop.kind"
HOP_NAME: Final = "hopwatch.hop.name"
HOP_PARENT: Final = "hopwatch.hop.parent"
"""16 hex digits: the hop that caused this one, also where other spans stand between. Absent on a root."""
HOP_STARTED: Final = "hopwatch.hop.started"
"""Unix nanoseconds, on a marker (whose own times say when it was made)."""
HOP_CHILDREN: Final = "hopwatch.hop.children"
"""How many visible children the hop has had in its own process, up to now; absent for none."""
HOP_LATE_CHILDREN: Final = "hopwatch.hop.late_children"
"""How many of its children began after it had closed."""
HOP_LATE: Final = "hopwatch.hop.late"
"""True on a hop that began after its parent had closed."""
HOP_REMOTE: Final = "hopwatch.hop.remote"
"""True on a hop that a message brought: its parent named it by its id, and does not count it among its children."""
HOP_OUTCOME: Final = "hopwatch.hop.outcome"
"""How the hop ended; absent for `finished`."""
HOP_REASON: Final = "hopwatch.hop.reason"
"""Why the hop failed, was cancelled or abandoned, in a few words."""
HOP_DROPPED: Final = "hopwatch.hop.dropped"
"""How many entries below this hop did not fit into the ledger: they are not accounted for."""
HOP_UNCOUNTED: Final = "hopwatch.hop.uncounted"
"""Which instrumentations of ours, with commas between them, were not in place where the hop was, though their library was loaded."""
HOP_WAITS: Final = "hopwatch.hop.waits"
"""What an open hop waits on, as JSON (the form of `hopwatch.waits.Wait.as_dict`)."""
HOP_MOVES: Final = "hopwatch.hop.moves"
"""False on a marker of a hop that only other work could wake (design 5, `stalled`)."""

PEER: Final = "hopwatch.peer"
"""What a send or push knows of the one that it called: `instrumented`, `opaque`, `refused` or `unknown`."""
PEER_HOP: Final = "hopwatch.peer.hop"
"""16 hex digits: the hop that the peer acknowledged."""
PEER_OTHERS: Final = "hopwatch.peer.others"
"""More hops that the answer acknowledged, with commas between them: of those to whom an instrumented gateway handed the message on."""
PEER_ATTEMPTS: Final = "hopwatch.peer.attempts"
"""How often the message may have reached somebody (redirects, retries); absent for once or never."""
PEER_SAMPLED: Final = "hopwatch.peer.sampled"
"""False where the peer said that its sampler drops this trace."""

HEARTBEAT_OPEN: Final = "hopwatch.heartbeat.open"
HEARTBEAT_DROPPED: Final = "hopwatch.heartbeat.dropped"
HEARTBEAT_SAMPLED: Final = "hopwatch.heartbeat.sampled"
"""Unix nanoseconds: what every open hop waits on was looked at since then, and markers tell what changed."""

SHUTDOWN_WAY: Final = "hopwatch.shutdown.way"
"""How a process ended: `exit`, `exception`, `SIGINT`, `SIGTERM`, `execv`."""
SHUTDOWN_PENDING: Final = "hopwatch.shutdown.pending"
"""How much was pending when it ended. With a dot and a kind behind it: how much of that kind."""
SWALLOWED: Final = "hopwatch.hop.swallowed_cancellation"
"""True on a task that was asked to cancel, and ended as if nobody had."""
OUTLIVED: Final = "hopwatch.hop.outlived_cancellation"
"""True on a hop that was still pending a second after its task had been asked to cancel."""
ITEMS: Final = "hopwatch.hop.items"
"""For how many items of queues an abandoned `event` stands."""

# OpenTelemetry's own.
SERVICE_NAME: Final = "service.name"
SERVICE_INSTANCE_ID: Final = "service.instance.id"
PROCESS_PID: Final = "process.pid"
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
HTTP_STATUS_CODE: Final = "http.response.status_code"
HTTP_REFUSALS: Final = frozenset({401, 403, 405, 411, 413, 414, 415, 421, 426, 429, 431})
"""Statuses by which a server says that it did not even ask the agent. With 400 and 404 a2a-sdk also hands on what an agent
raises that has begun (`a2a.utils.errors` of 1.3.0)."""
RPC_SYSTEM: Final = "rpc.system.name"
RPC_STATUS_CODE: Final = "rpc.response.status_code"
RPC_METHOD: Final = "rpc.method"
JSONRPC: Final = "jsonrpc"
"""`rpc.system.name` of what goes by the Agent Client Protocol. There an error is an answer: whoever sent it is done with the message."""
CODE_FUNCTION_NAME: Final = "code.function.name"
CODE_FILE_PATH: Final = "code.file.path"
CODE_LINE_NUMBER: Final = "code.line.number"
MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_OPERATION_NAME: Final = "messaging.operation.name"
MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGING_DESTINATION_NAME: Final = "messaging.destination.name"

# The draft conventions for A2A (OpenTelemetry semantic-conventions-genai, pull request 195).
A2A_METHOD_NAME: Final = "a2a.method.name"
A2A_TASK_ID: Final = "a2a.task.id"
A2A_TASK_STATE: Final = "a2a.task.state"
A2A_MESSAGE_ID: Final = "a2a.message.id"
A2A_REFERENCE_TASK_IDS: Final = "a2a.message.reference_task_ids"
A2A_TENANT: Final = "a2a.tenant"
GEN_AI_CONVERSATION_ID: Final = "gen_ai.conversation.id"

# Of queues, locks and messages that wait.
QUEUE_DEPTH: Final = "hopwatch.queue.depth"
QUEUE_WAIT: Final = "hopwatch.queue.wait"
"""Seconds between enqueue and dequeue."""
LOCK_NAME: Final = "hopwatch.lock.name"
STREAMING: Final = "hopwatch.a2a.streaming"
BLOCKING: Final = "hopwatch.a2a.blocking"

# Headers.
TRACESTATE_KEY: Final = "hopwatch"
"""Key of our tracestate entry; its value is `<cascade>-<hop>`, 32 and 16 hex digits, and for a push `-push`.

A message of the Agent Client Protocol adds `-` and 8 hex digits, which name its connection: who gets that back over the same
connection knows that the peer only hands on what it was sent."""
TRANSPORT_MARK: Final = "acp"
"""What stands there instead in the context in which such a message is sent: the HTTP requests by which that is done are no message."""
ACKNOWLEDGEMENT_HEADER: Final = "hopwatch-hop"
"""Beside `traceresponse`, which other instrumentations set too: the same value, and certainly a hop's."""
TRACERESPONSE_HEADER: Final = "traceresponse"
ATTEMPTS_HEADER: Final = "hopwatch-attempts"
"""Back, where gRPC's core or a proxy sent the same message before: how often. Only the receiver gets to know it."""
PROXY_ATTEMPT_HEADER: Final = "x-envoy-attempt-count"
"""To the receiver, from Envoy and what is built on it, if told to: the how manieth attempt this is."""

META_KEY: Final = "_meta"
"""Where messages of the Agent Client Protocol carry what is not their own: of a request and a notification in `params`."""
META_TRACE_KEYS: Final = ("traceparent", "tracestate", "baggage")
"""What the protocol reserves there for tracing."""

# Metrics.
METRIC_OPEN: Final = "hopwatch.hops.open"
METRIC_DURATION: Final = "hopwatch.hop.duration"
METRIC_TASK_DURATION: Final = "hopwatch.task.duration"
METRIC_EVENT_DURATION: Final = "hopwatch.event.duration"
METRIC_QUEUE_WAIT: Final = "hopwatch.queue.wait"
METRIC_QUEUE_DEPTH: Final = "hopwatch.queue.depth"
METRIC_LOCK_WAIT: Final = "hopwatch.lock.wait"
METRIC_LOCK_HOLD: Final = "hopwatch.lock.hold"
METRIC_DESTROYED: Final = "hopwatch.tasks.destroyed"
METRIC_PENDING: Final = "hopwatch.tasks.pending_at_shutdown"
METRIC_SWALLOWED: Final = "hopwatch.cancellations.swallowed"
METRIC_OUTLIVED: Final = "hopwatch.cancellations.outlived"
METRIC_DEADLOCKS: Final = "hopwatch.deadlocks"
METRIC_ORPHANED: Final = "hopwatch.service.orphaned"
METRIC_DROPPED: Final = "hopwatch.ledger.dropped"
METRIC_FAILURES: Final = "hopwatch.hooks.failed"

# Metrics of the collector, at `/metrics`. They are of other names than the agents' own, so that one Prometheus may have both.
COLLECTOR_INFO: Final = "hopwatch_collector"
COLLECTOR_CASCADES: Final = "hopwatch_cascades"
COLLECTOR_CASCADE_AGE: Final = "hopwatch_cascade_age_seconds"
COLLECTOR_CASCADES_UNREAD: Final = "hopwatch_cascades_unread"
COLLECTOR_OPEN_HOPS: Final = "hopwatch_open_hops"
COLLECTOR_OPEN_HOP_AGE: Final = "hopwatch_open_hop_age_seconds"
COLLECTOR_WAITING_HOPS: Final = "hopwatch_waiting_hops"
COLLECTOR_ABANDONED_HOPS: Final = "hopwatch_abandoned_hops"
COLLECTOR_PENDING_AT_SHUTDOWN: Final = "hopwatch_pending_at_shutdown"
COLLECTOR_SWALLOWED: Final = "hopwatch_swallowed_cancellations"
COLLECTOR_OUTLIVED: Final = "hopwatch_outlived_cancellations"
COLLECTOR_DEADLOCKS: Final = "hopwatch_open_deadlocks"
COLLECTOR_PROCESSES: Final = "hopwatch_processes"
COLLECTOR_SILENCE: Final = "hopwatch_process_silence_seconds"
COLLECTOR_DROPPED: Final = "hopwatch_dropped_entries"
COLLECTOR_STORE_BYTES: Final = "hopwatch_store_bytes"
COLLECTOR_STORE_CASCADES: Final = "hopwatch_store_cascades"
COLLECTOR_STORE_PENDING: Final = "hopwatch_store_pending_requests"
COLLECTOR_MEASURED: Final = "hopwatch_measured_seconds"
COLLECTOR_RECORDS: Final = "hopwatch_records_received"
COLLECTOR_REJECTED: Final = "hopwatch_records_rejected"
COLLECTOR_IGNORED: Final = "hopwatch_spans_ignored"
COLLECTOR_REQUESTS: Final = "hopwatch_otlp_requests"
COLLECTOR_LAG: Final = "hopwatch_record_lag_seconds"

# Log events.
EVENT_TASK_NEVER_FINISHED: Final = "hopwatch.task.never_finished"
EVENT_SHUTDOWN: Final = "hopwatch.shutdown"
EVENT_SWALLOWED: Final = "hopwatch.task.cancellation_swallowed"
EVENT_OUTLIVED: Final = "hopwatch.task.cancellation_outlived"
EVENT_DEADLOCK: Final = "hopwatch.deadlock"
EVENT_ORPHANED: Final = "hopwatch.service.orphaned"
SERVICE_LOOP: Final = "hopwatch.service.loop"
"""Name of one service loop whose owner has ended."""
SERVICE_LOOPS: Final = "hopwatch.service.loops"
"""The names of all that one owner left."""
SERVICE_OWNER: Final = "hopwatch.service.owner"
"""Who the owner was, and how it ended."""
DEADLOCK_TASKS: Final = "hopwatch.deadlock.tasks"
"""How many tasks are part of it."""
DEADLOCK_EDGES: Final = "hopwatch.deadlock.edges"
"""The edges, as JSON (the form of `hopwatch.waits.Deadlock.as_dict`)."""

# Kinds of hops, outcomes, peers.
KINDS: Final = ("request", "execution", "send", "push", "webhook", "task", "event", "lock")
PROCESS_KILLED: Final = "process_killed"
"""The reason of a hop whose process ended without a word: SIGKILL, a crash, `os._exit`, lack of memory."""
OUTCOMES: Final = ("finished", "failed", "cancelled", "abandoned")
PEERS: Final = ("instrumented", "opaque", "refused", "unknown")
TERMINAL_STATES: Final = frozenset(
    {"TASK_STATE_COMPLETED", "TASK_STATE_CANCELED", "TASK_STATE_FAILED", "TASK_STATE_REJECTED"}
)
UNFINISHED_STATES: Final = frozenset({"TASK_STATE_SUBMITTED", "TASK_STATE_WORKING", "TASK_STATE_UNSPECIFIED"})
COMPLETED: Final = "TASK_STATE_COMPLETED"
"""The terminal state of a task that did what it was asked for."""
RPC_ANSWERS: Final = frozenset(
    {
        "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "FAILED_PRECONDITION", "ABORTED",
        "OUT_OF_RANGE", "UNIMPLEMENTED", "UNAUTHENTICATED",
    }
)  # fmt: skip
"""Statuses of gRPC that somebody at the other end gives. The others gRPC may have made up itself."""
RPC_REFUSALS: Final = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"})
"""Those by which a message is refused before anything is done for it. After the others an agent may have begun, and be at it still."""
INTERRUPTED_STATES: Final = frozenset({"TASK_STATE_INPUT_REQUIRED", "TASK_STATE_AUTH_REQUIRED"})
