"""Names of the events that Remit itself sends between two ends. No user event may begin with `RESERVED`."""

from typing import Final

from remit.codec import UNDECODABLE as UNDECODABLE

RESERVED: Final = "remit."

# -- undecodable events: rejections.py --
REJECTED: Final = "remit.rejected"
"""Event in both directions, to the sender of an event that could not be decoded: its name, the reason."""

# -- requests: request_reply.py --
REQUEST: Final = "remit.request"
"""Event to the server: request id, milliseconds left or None, idempotent, encoded call."""
REPLY: Final = "remit.reply"
"""Event to the client: request id, outcome, encoded result."""
PROGRESS: Final = "remit.progress"
"""Event to the client: request id, done, total."""
REQUEST_NOTE: Final = "remit.note"
"""Event of a broker to the client: request id, why the request waits (empty: for its worker)."""

# -- publications: pubsub.py --
SUBSCRIBE: Final = "remit.subscribe"
"""Request: subscription id, pattern, queue, when_full, max_lag in seconds or None, whether to send last values."""
UNSUBSCRIBE: Final = "remit.unsubscribe"
"""Event to the server: subscription id."""
PUBLISHED: Final = "remit.published"
"""Event to the client: subscription id, number, encoded publication."""
UNSUBSCRIBED: Final = "remit.unsubscribed"
"""Event to the client when the server ends a subscription: subscription id, reason."""

# -- jobs: jobs.py --
WORKER_READY: Final = "remit.ready"
"""Request of a worker: names, capacity, term, tokens of running jobs, process. Answered with its lease in seconds."""
WORKER_LEAVE: Final = "remit.leave"
"""Request of a worker that takes no more jobs: tokens of running jobs, why others were given up. They are requeued."""
WORKER_UNKNOWN: Final = "remit.unknown"
"""Event to a worker whose lease has expired: it must announce itself again."""
JOB: Final = "remit.job"
"""Event to a worker: token, attempt, milliseconds left or None, codec, encoded call, term of the worker."""
JOB_STARTED: Final = "remit.begun"
"""Event of a worker: token."""
JOB_PROGRESS: Final = "remit.progressed"
"""Event of a worker: token, done, total."""
JOB_DONE: Final = "remit.done"
"""Event of a worker: token, outcome, encoded result."""

# -- exclusive pairs: exclusive_pair.py --
PAIR_JOIN: Final = "remit.pair"
"""Request to become the second member: lease in seconds. Answered with the epoch and the lease of the first member."""
PAIR_SIGNAL: Final = "remit.signal"
"""Event in both directions: epoch, value."""
PAIR_CHECK: Final = "remit.present"
"""Request of the second member: epoch. Answered with whether it still is the member. Epoch 0 gives the place up."""
PAIR_ENDED: Final = "remit.parted"
"""Event to a client that is not, or no longer, the second member: epoch."""

# -- local events --
SERVER_RESTARTED: Final = "remit.renewed"
"""Never sent. The dispatcher of a client queues it between received events: the new server knows no earlier session."""
