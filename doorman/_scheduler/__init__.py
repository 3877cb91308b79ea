"""The scheduler of a manager: which attempt starts when, and what each event does to it."""
