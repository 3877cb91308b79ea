"""Simulation of a manager's core: seeded orders of events, with the manager killed between any two actions."""
