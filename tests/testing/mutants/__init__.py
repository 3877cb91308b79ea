"""Transports that each break the contract in one way, over memory unless only a real wire can break so."""

from __future__ import annotations

from mutants import claims, frames, life, peers, receiving, sending
from mutants.making import MUTANTS, Mutant, MutantHarness, MutantTransport, cut, release

__all__ = [
    "MUTANTS",
    "Mutant",
    "MutantHarness",
    "MutantTransport",
    "claims",
    "cut",
    "frames",
    "life",
    "peers",
    "receiving",
    "release",
    "sending",
]
