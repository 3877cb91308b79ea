"""Transports in the box: memory, Unix sockets, and chaos around any other."""
