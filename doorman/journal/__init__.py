"""The write-ahead journal of a manager, and the recovery of its tasks by the next manager."""
