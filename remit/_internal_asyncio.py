"""What Doorman uses of Remit's internals on an event loop. A module of its own, since asyncio is slow to import."""

from remit._io.async_server import AsyncListeners as AsyncListeners
from remit._io.loop_threads import BlockOwner as BlockOwner
from remit._io.loop_threads import call_in_thread as call_in_thread
from remit._io.loop_threads import finish_uncancelled as finish_uncancelled
