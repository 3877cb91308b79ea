"""Protocol: pure state machines for acknowledged delivery. No socket, no thread, no sleep, no clock.

A session joins one client to one server and outlives their connections. Each direction has an `Outbox` on the
sending side and an `Inbox` on the receiving side; a `Session` holds one of each; a `Connector` is the client's
end of one session, an `Acceptor` the server's end of many.
"""
