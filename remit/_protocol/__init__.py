"""Pure state machines of acknowledged delivery. No socket, thread, sleep or clock.

A session joins one client to one server and outlives their connections. Each direction has an `Outbox` at the
sending end and an `Inbox` at the receiving end. `ClientSession` is the client's end of one session, `ServerSessions`
holds the server's ends of many.
"""
