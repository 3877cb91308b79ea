"""Transports of the distribution `remit`: memory, Unix sockets, and two wrappers for any transport."""
