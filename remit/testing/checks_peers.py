"""Checks of peers: Up, Down, tokens and exclusive locations."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Hashable
from typing import Final

from remit.errors import LocationInUse
from remit.testing.runner import check
from remit.testing.trial import LinkEnd, Trial, Violation, expect, expect_frames
from remit.transport import SERVER, Frame, Gap, Sent

LINGER_S: Final = 1.0
RETURNS: Final = 3  # Servers bound one after the other.
FRAMES: Final = 10


@check(5)
def clients_have_distinct_tokens(trial: Trial) -> None:
    """Each client has its own token at the server, and is reached by it."""
    pair = trial.open_pair()
    other = trial.connect(pair.location)
    second = trial.exchange_greetings(pair.server, other)
    expect(second != pair.peer, f"two clients have the same token: {second!r}")
    ends = (*pair.ends, other)
    trial.send(pair.server, second, b"for the second", *ends)
    trial.send(pair.server, pair.peer, b"for the first", *ends)
    trial.send(pair.client, SERVER, b"from the first", *ends)
    trial.send(other, SERVER, b"from the second", *ends)
    trial.wait_until(lambda: other.frames and pair.client.frames, "each client receives its frame", *ends)
    trial.wait_until(lambda: len(pair.server.frames) >= 2, "the server receives a frame of each client", *ends)
    expect_frames(other.frames, [b"for the second"])
    expect_frames(pair.client.frames, [b"for the first"])
    whose = {bytes(each.data): each.peer for each in pair.server.arrivals if isinstance(each, Frame)}
    tokens = {b"from the first": pair.peer, b"from the second": second}
    expect(whose == tokens, f"frames arrived under wrong tokens: {whose}")


@check(5)
def the_client_knows_only_the_server(trial: Trial) -> None:
    """At the client's end the only token is SERVER."""
    pair = trial.open_pair()
    trial.send(pair.server, pair.peer, b"second frame", *pair.ends)
    trial.wait_until(lambda: pair.client.frames, "a frame arrives", *pair.ends)
    trial.close_end(pair.server, LINGER_S)
    wait_for_down(trial, pair.client)
    tokens = {each.peer for each in pair.client.arrivals if not isinstance(each, Gap)}
    expect(tokens == {SERVER}, f"tokens in the arrivals at the client's end: {tokens}")


@check(5)
def tokens_are_values(trial: Trial) -> None:
    """A token is hashable, and equal in all arrivals of its connection."""
    pair = trial.open_pair()
    expect(isinstance(pair.peer, Hashable), f"the token {pair.peer!r} is not hashable")
    shown = repr(pair.peer)
    frames = [b"%d" % number for number in range(FRAMES)]
    for data in frames:
        trial.send_both_ways(pair, data)
    trial.expect_received(pair.server, frames, *pair.ends)
    tokens = {each.peer for each in pair.server.arrivals if not isinstance(each, Gap)}
    expect(tokens == {pair.peer}, f"arrivals under other tokens than {pair.peer!r}: {tokens}")
    expect(repr(pair.peer) == shown, f"the token {shown} changed to {pair.peer!r}")


@check(5)
def a_client_may_come_first(trial: Trial) -> None:
    """A client may connect before its server binds, and reports Up once it does."""
    place = trial.free_location()
    client = trial.connect(place)
    trial.poll(client)
    expect(not client.ups, "the client reports Up before a server is bound")
    trial.exchange_greetings(trial.bind(place), client)


def wait_for_down(trial: Trial, client: LinkEnd) -> None:
    """Send until a client reports that its server has closed."""

    def gone() -> bool:
        # A backend without connections notices the end of a server only when the client sends.
        if not client.losses:
            client.link.send(SERVER, b"probe")
        return bool(client.downs)

    trial.wait_until(gone, "a client whose server has closed reports Down", client)


@check(5)
def a_server_goes_and_returns(trial: Trial) -> None:
    """A client reports Down each time its server leaves and Up each time it returns, alternately."""
    place = trial.free_location()
    client = trial.connect(place)
    for _ in range(RETURNS):
        client.arrivals.clear()
        server = trial.bind(place)
        trial.exchange_greetings(server, client)
        trial.close_end(server, LINGER_S)
        wait_for_down(trial, client)
        kinds = [type(each).__name__ for each in client.arrivals if not isinstance(each, Gap)]
        expect(kinds == ["Up", "Down"], f"a client whose server was bound and closed reported {kinds}")
        result = client.link.send(SERVER, b"late")
        expect(result is Sent.GONE, f"after Down, send returned {result.value}")


@check(13)
def a_loss_has_a_reason(trial: Trial) -> None:
    """Down at the client has a reason; Link.why is empty while connected, and any thread may read it."""
    place = trial.free_location()
    client = trial.connect(place)
    for _ in range(2):
        trial.run_in_thread(lambda: expect(isinstance(client.link.why, str), f"why is {client.link.why!r}, no string"))
        server = trial.bind(place)
        trial.exchange_greetings(server, client)
        for end in (server, client):
            trial.wait_until(lambda end=end: not end.link.why, "why is empty while connected", server, client)  # type: ignore[misc]
        trial.close_end(server, LINGER_S)
        wait_for_down(trial, client)
        expect(all(down.why for down in client.downs), "Down at the client without a reason")


@check(4)
def a_client_that_goes_is_gone(trial: Trial) -> None:
    """Link.send returns GONE for a client that has left, also after other clients connect."""
    pair = trial.open_pair()
    trial.close_end(pair.client, LINGER_S)

    def gone() -> bool:
        return pair.server.link.send(pair.peer, b"probe") is Sent.GONE

    trial.wait_until(gone, "send to a closed client returns GONE", pair.server)
    pair.server.arrivals.clear()
    trial.exchange_greetings(pair.server, trial.connect(pair.location))
    expect(gone(), "after Down, a frame sent to the old token goes to another client")


@check(5)
def up_comes_first_and_down_last(trial: Trial) -> None:
    """The arrivals of a client are Up, its frames, then Down with a reason."""
    server = trial.bind()
    client = trial.connect(server.link.location)
    trial.wait_until(lambda: client.ups, "the client reports Up", server, client)
    trial.send(client, SERVER, b"first", server, client)
    trial.wait_until(lambda: server.frames, "a client's first frame arrives", server, client)
    # The server does not read these frames until the client has closed. A full queue may refuse some.
    frames = [b"%d" % number for number in range(FRAMES)]
    accepted = [data for data in frames if client.link.send(SERVER, data) is Sent.ACCEPTED]
    trial.close_end(client, max(LINGER_S, trial.seconds_left / 2))
    sees_peers = trial.capabilities.sees_peers

    def over() -> bool:
        return bool(server.losses) if sees_peers else len(server.frames) > len(accepted)

    trial.wait_until(over, "a client's last frames arrive, and then Down", server)
    arrivals = [each for each in server.arrivals if not isinstance(each, Gap)]
    kinds = [type(each).__name__ for each in arrivals if sees_peers or isinstance(each, Frame)]
    expected = ["Frame"] * (kinds.count("Frame") if trial.capabilities.lossy else 1 + len(accepted))
    expected = ["Up", *expected, "Down"] if sees_peers else expected
    expect(kinds == expected, f"the arrivals of a client that connected and closed are {kinds}, not {expected}")
    expect(len({each.peer for each in arrivals}) == 1, "Up, Frame and Down do not share one token")
    expect(all(down.why for down in server.downs), "Down without a reason")


@check(5)
def a_token_is_never_used_again(trial: Trial) -> None:
    """A token is never used again."""
    pair = trial.open_pair()
    tokens = [pair.peer]
    trial.close_end(pair.client, 0.0)
    for _ in range(5):
        client = trial.connect(pair.location)
        pair.server.arrivals.clear()
        tokens.append(trial.exchange_greetings(pair.server, client))
        trial.close_end(client, 0.0)
    expect(len(set(tokens)) == len(tokens), f"tokens of successive clients: {tokens}")


@check(5, capability="sees_peers")
def silent_clients_are_seen(trial: Trial) -> None:
    """The server's end reports Up and Down of a client that never sends."""
    server = trial.bind()
    client = trial.connect(server.link.location)
    trial.wait_until(lambda: server.ups, "the server reports Up", server, client)
    trial.close_end(client, LINGER_S)
    trial.wait_until(lambda: server.downs, "the server reports Down", server)
    expect([down.peer for down in server.downs] == [server.ups[0].peer], "Up and Down do not share one token")


@check(5, capability="attests_peers")
def peers_are_attested(trial: Trial) -> None:
    """Up carries the peer's credentials as attested by the kernel."""
    pair = trial.open_pair()
    attested = [up.credentials for up in pair.server.ups if up.peer == pair.peer and up.credentials]
    expect(attested, "Up at the server has no credentials")
    own = (os.getpid(), os.geteuid(), os.getegid())
    found = (attested[0].pid, attested[0].uid, attested[0].gid)
    expect(found == own, f"(pid, uid, gid) of the peer are {own}, and its credentials are {found}")


@check(10)
def a_second_server_is_refused(trial: Trial) -> None:
    """A second server on one location raises LocationInUse and does not disturb the first."""
    pair = trial.open_pair()

    def bind() -> None:
        with contextlib.suppress(LocationInUse):
            trial.bind(pair.location)
            raise Violation("a second server was bound at the location of the first")

    trial.run_in_thread(bind)
    trial.send(pair.client, SERVER, b"undisturbed", *pair.ends)
    # Not expect_received(): a Gap or Down at the first server would be a disturbance, too.
    trial.wait_until(lambda: pair.server.frames, "a frame arrives at the first server", *pair.ends)
    expect_frames(pair.server.frames, [b"undisturbed"])


@check(10)
def a_location_is_free_after_close(trial: Trial) -> None:
    """A location is free again once its server has closed."""
    place = trial.free_location()
    for _ in range(RETURNS):
        pair = trial.open_pair(place)
        expect(pair.location == place, f"the link of a server bound at {place} has the location {pair.location}")
        trial.close_end(pair.client, 0.0)
        trial.close_end(pair.server, 0.0)


@check(10)
def port_0_becomes_a_real_one(trial: Trial) -> None:
    """A server's link has its actual location: for port 0, the port that the system chose."""
    server = trial.bind()
    bound, asked = server.link.location, trial.location
    same = bound.replace(port=asked.port) == asked and (bound.port != 0 if asked.port == 0 else bound == asked)
    expect(same, f"the link of a server bound at {asked} has the location {bound}")
    if asked.port == 0:
        second = trial.bind()
        expect(second.link.location != bound, f"the links of two servers on port 0 both have the location {bound}")
