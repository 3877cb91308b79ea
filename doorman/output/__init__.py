"""Output: what tasks write, by descriptor into files, or line by line to whoever listens."""
