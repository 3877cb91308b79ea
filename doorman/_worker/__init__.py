"""Code that runs in the child process of a task."""
