"""Peers: the checks of who is there: Up, Down, tokens, and what the server's end sees of its clients by itself."""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import Final

from remit.errors import LocationInUse
from remit.testing.link_pair import Bench, End, LinkPair
from remit.testing.runner import Topic
from remit.testing.violations import Violation, expect, expect_same
from remit.transport import SERVER, Frame, Gap, Sent

__all__ = ["TOPIC"]


TOPIC: Final = Topic()
LINGER: Final = 1.0
"""Seconds for an end that leaves in good order."""
RETURNS: Final = 3
FRAMES: Final = 10


@TOPIC.check(5, "A server tells its clients apart, and reaches each by its own token.")
def clients_are_told_apart(bench: Bench) -> None:
    pair = bench.pair()
    other = bench.connect(pair.location)
    second = bench.meet(pair.server, other)
    expect(second != pair.peer, f"two clients have the same token: {second!r}")
    ends = (*pair.ends, other)
    bench.put(pair.server, second, b"for the second", *ends)
    bench.put(pair.server, pair.peer, b"for the first", *ends)
    bench.put(pair.client, SERVER, b"from the first", *ends)
    bench.put(other, SERVER, b"from the second", *ends)
    bench.until(lambda: other.frames and pair.client.frames, "each client hears from its server", *ends)
    bench.until(lambda: len(pair.server.frames) >= 2, "the server hears from each client", *ends)
    expect_same(other.frames, [b"for the second"])
    expect_same(pair.client.frames, [b"for the first"])
    whose = {bytes(each.data): each.peer for each in pair.server.arrivals if isinstance(each, Frame)}
    expect(whose == {b"from the first": pair.peer, b"from the second": second}, f"frames under wrong tokens: {whose}")


@TOPIC.check(5, "At the client's end the only token is SERVER.")
def the_client_knows_only_the_server(bench: Bench) -> None:
    pair = bench.pair()
    bench.put(pair.server, pair.peer, b"hello again", *pair.ends)
    bench.until(lambda: pair.client.frames, "a frame arrives", *pair.ends)
    bench.close(pair.server, LINGER)
    notice(bench, pair.client)
    tokens = {each.peer for each in pair.client.arrivals if not isinstance(each, Gap)}
    expect(tokens == {SERVER}, f"tokens at the client's end: {tokens}")


@TOPIC.check(5, "A token is a value: hashable, equal to itself in each arrival, and the same for as long as it lives.")
def tokens_are_values(bench: Bench) -> None:
    pair = bench.pair()
    expect(isinstance(pair.peer, Hashable), f"the token {pair.peer!r} is not hashable")
    kept, shown = {pair.peer: None}, repr(pair.peer)
    for number in range(FRAMES):
        bench.put(pair.client, SERVER, b"%d" % number, *pair.ends)
        bench.put(pair.server, pair.peer, b"%d" % number, *pair.ends)
    bench.collect(pair.server, FRAMES, *pair.ends)
    others = [each for each in pair.server.arrivals if not isinstance(each, Gap) and each.peer not in kept]
    expect(not others, f"arrivals under other tokens than {pair.peer!r}: {others}")
    expect(repr(pair.peer) == shown, f"the token {shown} has become {pair.peer!r}")


@TOPIC.check(5, "A client may come before its server, and says Up when that comes.")
def a_client_may_come_first(bench: Bench) -> None:
    place = bench.place()
    client = bench.connect(place)
    bench.turn(client)
    expect(not client.ups, "a client says Up before there is a server")
    bench.meet(bench.bind(place), client)


def notice(bench: Bench, client: End) -> None:
    """Wait until a client has noticed that its server is gone; asking is allowed."""

    def gone() -> bool:
        if not client.losses:
            client.link.send(SERVER, b"still there?")
        return bool(client.downs)

    bench.until(gone, "a client whose server has gone says Down", client)


@TOPIC.check(5, "A client says Down each time its server goes and Up each time it returns, in turns.")
def a_server_goes_and_returns(bench: Bench) -> None:
    place = bench.place()
    client = bench.connect(place)
    for _ in range(RETURNS):
        client.arrivals.clear()
        server = bench.bind(place)
        bench.meet(server, client)
        bench.close(server, LINGER)
        notice(bench, client)
        kinds = [type(each).__name__ for each in client.arrivals if not isinstance(each, Gap)]
        expect(kinds == ["Up", "Down"], f"a client whose server came and went said {kinds}")
        said = client.link.send(SERVER, b"too late")
        expect(said is Sent.GONE, f"after Down, send says {said.value}")


@TOPIC.check(4, "send says GONE to a client that has gone, and goes on saying so when others come.")
def a_client_that_goes_is_gone(bench: Bench) -> None:
    pair = bench.pair()
    bench.close(pair.client, LINGER)

    def gone() -> bool:
        return pair.server.link.send(pair.peer, b"still there?") is Sent.GONE

    bench.until(gone, "send to a client that has gone says GONE", pair.server)
    bench.meet(fresh(pair.server), bench.connect(pair.location))
    expect(gone(), "send under a dead token goes to another client")


def fresh(end: End) -> End:
    """Return the same end with nothing arrived yet."""
    again = End(end.link)
    again.late = end.late
    return again


@TOPIC.check(5, "Of each client Up comes first and Down last, with a reason, and its last words in between.")
def up_comes_first_and_down_last(bench: Bench) -> None:
    server = bench.bind()
    client = bench.connect(server.link.location)
    bench.until(lambda: client.ups, "the client's link says Up", server, client)
    bench.put(client, SERVER, b"first", server, client)
    bench.until(lambda: server.frames, "a client's first frame arrives", server, client)
    # What the server does not read before the client has gone, as far as there is room for it.
    words = [b"%d" % number for number in range(FRAMES)]
    taken = [data for data in words if client.link.send(SERVER, data) is Sent.ACCEPTED]
    bench.close(client, max(LINGER, bench.left / 2))
    sees_peers = bench.capabilities.sees_peers

    def over() -> bool:
        return bool(server.losses) if sees_peers else len(server.frames) > len(taken)

    bench.until(over, "a client's last frames arrive, and then Down", server)
    arrivals = [each for each in server.arrivals if not isinstance(each, Gap)]
    kinds = [type(each).__name__ for each in arrivals if sees_peers or isinstance(each, Frame)]
    frames = ["Frame"] * (kinds.count("Frame") if bench.capabilities.lossy else 1 + len(taken))
    expect(kinds == (["Up", *frames, "Down"] if sees_peers else frames), f"a client that came and went is {kinds}")
    expect(len({each.peer for each in arrivals}) == 1, "Up, Frame and Down do not share one token")
    expect(all(down.why for down in server.downs), "Down without a reason")


@TOPIC.check(5, "A token is never used again.")
def a_token_is_never_used_again(bench: Bench) -> None:
    pair = bench.pair()
    tokens = [pair.peer]
    bench.close(pair.client, 0.0)
    for _ in range(5):
        client = bench.connect(pair.location)
        tokens.append(bench.meet(fresh(pair.server), client))
        bench.close(client, 0.0)
    expect(len(set(tokens)) == len(tokens), f"tokens of clients that came one after the other: {tokens}")


@TOPIC.check(5, "The server's end says Up and Down of a client that never sends.", capability="sees_peers")
def silent_clients_are_seen(bench: Bench) -> None:
    server = bench.bind()
    client = bench.connect(server.link.location)
    bench.until(lambda: server.ups, "the server's end says Up", server, client)
    bench.close(client, LINGER)
    bench.until(lambda: server.downs, "the server's end says Down", server)
    expect([down.peer for down in server.downs] == [server.ups[0].peer], "Up and Down do not share one token")


@TOPIC.check(5, "Up carries what the kernel says of the peer.", capability="attests_peers")
def peers_are_attested(bench: Bench) -> None:
    pair = bench.pair()
    said = [up.credentials for up in pair.server.ups if up.peer == pair.peer]
    expect(said and said[0], "the server's Up carries no credentials")
    told = next(each for each in said if each)
    expect(told.pid == os.getpid(), f"the peer is process {os.getpid()}, and its credentials say {told.pid}")
    own = (os.geteuid(), os.getegid())
    expect((told.uid, told.gid) == own, f"the peer is user and group {own}, and its credentials say {told}")


# -- one server at one location --------------------------------------------------------------------------------


def traffic(bench: Bench, pair: LinkPair) -> None:
    bench.put(pair.client, SERVER, b"undisturbed", *pair.ends)
    bench.until(lambda: pair.server.frames, "a frame arrives at the first server", *pair.ends)
    expect_same(pair.server.frames, [b"undisturbed"])


@TOPIC.check(10, "A second server on one location raises LocationInUse, and the first does not notice.")
def a_second_server_is_refused(bench: Bench) -> None:
    pair = bench.pair()
    refused: list[LocationInUse] = []

    def bind() -> None:
        try:
            bench.bind(pair.location)
        except LocationInUse as error:
            refused.append(error)

    with bench.beside(bind):
        pass
    if not refused:
        raise Violation("a second server was let in")
    traffic(bench, pair)


@TOPIC.check(10, "A location is free again once its server has closed.")
def a_location_is_free_after_close(bench: Bench) -> None:
    place = bench.place()
    for _ in range(RETURNS):
        pair = bench.pair(place)
        expect(pair.location == place, f"a server bound at {place} says that it is at {pair.location}")
        bench.close(pair.client, 0.0)
        bench.close(pair.server, 0.0)


@TOPIC.check(10, "A server's link says where it is: on port 0, with the port that the system chose.")
def port_0_becomes_a_real_one(bench: Bench) -> None:
    server = bench.bind()
    told, asked = server.link.location, bench.location
    expect(told.port != 0, f"a server bound at {asked} says that it is at {told}")
    same = told.replace(port=asked.port) == asked
    expect(same, f"a server bound at {asked} says that it is at {told}")
    if asked.port != 0:
        expect(told == asked, f"a server bound at {asked} says that it is at {told}")
    if asked.port == 0:
        second = bench.bind()
        expect(second.link.location != told, f"two servers on port 0 both say that they are at {told}")
