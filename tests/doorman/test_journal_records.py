"""The records of a journal: each a line that is read again, or is seen to be damaged. Pure."""

from __future__ import annotations

import pytest
from journals import added, done

from doorman.journal.records import Added, Ended, Requeued, Started, decoded, encoded, folded


def test_a_record_is_a_line_and_is_read_again():
    line = encoded(added("1", bytes(range(256))))
    assert line.count(b"\n") == 1
    assert decoded(line) == added("1", bytes(range(256)))


@pytest.mark.parametrize("damage", ["", "\n", "no record\n", "00000000 {}\n", "flipped", "torn"])
def test_what_is_no_record_is_none(damage):
    line = encoded(added("1"))
    damaged = {"flipped": line.replace(b"name", b"mane"), "torn": line[:-1]}.get(damage, damage.encode())
    assert decoded(damaged) is None


def test_a_line_with_the_right_sum_that_says_nothing_known_is_none():
    import zlib

    data = b'{"is":"forgotten"}'
    assert decoded(b"%08x %s\n" % (zlib.crc32(data), data)) is None


def test_a_folded_entry_says_the_same_in_fewer_records():
    started = Started("1", "1.2-ab", 2, b"secret", False, "boot")
    records = [added("1"), Started("1", "1.1-ab", 1, b"secret", False, "boot"), Requeued("1", 1), started]
    entry = folded(records)["1"]
    assert list(entry.records()) == [added("1"), started]
    assert folded(entry.records())["1"] == entry
    ended = folded([*records, done("1")])["1"]
    assert [type(record) for record in ended.records()] == [Added, Requeued, Ended]
    assert folded(ended.records())["1"].number == 2
