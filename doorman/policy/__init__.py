"""Policy: when a task may start, what its process may use, and whether it is tried again."""
