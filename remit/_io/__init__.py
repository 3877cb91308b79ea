"""Links, queues and threads of an open client or server: everything between the public API and the protocol."""
