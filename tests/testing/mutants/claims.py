"""Mutants that cannot do what they claim, or do not claim what they can; and those of a fork or a disruption."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import Any

from mutants.making import (
    QUICK,
    MutantTransport,
    Retold,
    Sound,
    claims,
    cut,
    mutant,
    plain,
)
from mutants.sending import BlocksInSend
from remit.errors import TransportError
from remit.location import Location
from remit.testing import Disruption
from remit.transport import (
    Arrival,
    Credentials,
    Up,
)
from remit.transports.memory import MemoryLink
from remit.transports.unix import UnixTransport


@mutant("a_forked_child_is_refused", "does not raise ForkedLinkError")
class IsSharedByAFork(Sound):
    def _check(self, frame: bytes = b"") -> None:
        self._forked = False
        super()._check(frame)


class CutsItsParentsLinks(UnixTransport):
    """A real wire: what a child does to its copy of a connection, it does to the connection."""

    def bind(self, location: Location) -> Any:
        link = super().bind(location)
        kind: Any = type(link)

        class Cutting(kind):  # type: ignore[misc]
            def _close_descriptors(self) -> None:
                for stream in self.streams.values():
                    stream.socket.shutdown(2)
                super()._close_descriptors()

        link.__class__ = Cutting
        return link


class OpensNothingInAFork(MutantTransport):
    parent = 0

    def bind(self, location: Location) -> MemoryLink:
        self.parent = self.parent or os.getpid()
        if os.getpid() != self.parent:
            raise TransportError("not after a fork")
        return super().bind(location)


class Shy(UnixTransport):
    """Crosses processes and does not say so."""

    capabilities = replace(UnixTransport.capabilities, crosses_processes=False)


class AttestsAnother(Retold):
    def retell(self, arrival: Arrival) -> Arrival | None:
        return Up(arrival.peer, Credentials(1, 0, 0)) if isinstance(arrival, Up) else arrival


class Attests(Retold):
    def retell(self, arrival: Arrival) -> Arrival | None:
        attested = Credentials(os.getpid(), os.geteuid(), os.getegid())
        return Up(arrival.peer, attested) if isinstance(arrival, Up) else arrival


SOCKET = "unix:///tmp/{}.sock"
plain(
    "CutsItsParentsLinks",
    "a_forked_child_is_refused",
    "Down|not within",
    CutsItsParentsLinks,
    place=SOCKET,
    deadline=2.0,
)
plain("OpensNothingInAFork", "a_forked_child_opens_its_own", "not after a fork", OpensNothingInAFork)
plain("HidesThatItForks", "a_forked_child_opens_its_own", "works but is not declared", claims(forks=False))
plain("HidesThatItSeesPeers", "silent_clients_are_seen", "works but is not declared", claims(sees_peers=False))
plain("HidesThatItCrosses", "another_process_is_reached", "works but is not declared", Shy, place=SOCKET)
plain(
    "ClaimsToCross",
    "another_process_is_reached",
    "not within|still blocked",
    claims(crosses_processes=True),
    deadline=2.0,
)
plain("ClaimsToCrossHosts", "another_host_is_reached", "has no host and port", claims(crosses_hosts=True))
plain(
    "MeetsOnlyAtOneAddress",
    "another_host_is_reached",
    "did not connect through the host and port",
    claims(crosses_hosts=True),
    place="memory://127.0.0.1:7",
    deadline=QUICK,
)
plain("ClaimsToAttest", "peers_are_attested", "has no credentials", claims(attests_peers=True))
plain(
    "AttestsAnother",
    "peers_are_attested",
    "its credentials are \\(1, ",
    lambda: MutantTransport(AttestsAnother, attests_peers=True),
)
plain("HidesThatItAttests", "peers_are_attested", "works but is not declared", lambda: MutantTransport(Attests))
for _name, _check, _says, _kind, _break in (
    ("LosesSilentlyWhenCut", "a_cut_is_reported", "lost: ", Disruption.CUT_LINK, partial(cut, said=False)),
    ("StaysDownWhenCut", "a_cut_is_reported", "not within", Disruption.CUT_LINK, partial(cut, mended=False)),
    (
        "StaysDownAfterARestart",
        "a_restart_is_reported",
        "not within",
        Disruption.RESTART_SERVER,
        partial(cut, mended=False),
    ),
):
    plain(_name, _check, _says, MutantTransport, deadline=QUICK, breaks={_kind: _break})
plain(
    "BlocksWhenItStalls",
    "a_stalled_peer_blocks_no_call",
    "blocked",
    lambda: MutantTransport(BlocksInSend),
    deadline=QUICK,
    breaks={Disruption.STALL_PEER: lambda name: None},
)
