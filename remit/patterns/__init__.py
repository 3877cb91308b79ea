"""Patterns: what is built of events: questions and answers, publications, jobs, pairs."""
