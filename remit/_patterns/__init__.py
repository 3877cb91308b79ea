"""Both ends of request/reply, publish/subscribe, jobs and exclusive pairs, built from events."""
