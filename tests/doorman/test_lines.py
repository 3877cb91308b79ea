"""Lines: bytes in any pieces become the same lines."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doorman._scheduler.output import MAX_LINE_CHARS, Lines


def cut(*pieces: bytes) -> list[str]:
    lines = Lines()
    told = [line for piece in pieces for line in lines.feed(piece)]
    return [*told, *lines.feed(b"", last=True)]


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8))
def test_it_does_not_matter_where_the_bytes_are_cut(data, places):
    ends = [0, *sorted(place for place in places if place < len(data)), len(data)]
    pieces = [data[begin:end] for begin, end in pairwise(ends)]
    assert cut(*pieces) == cut(data)


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8")), max_size=8))
def test_lines_come_as_they_were_written(lines):
    assert cut("".join(f"{line}\n" for line in lines).encode()) == lines


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"no end", ["no end"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"\n\n", ["", ""]),
        (b"bad \xff\xc3\n\xc3", ["bad \ufffd\ufffd", "\ufffd"]),
    ],
)
def test_ends_and_what_is_no_text(data, lines):
    assert cut(data) == lines


def test_a_line_without_end_is_told_in_pieces_of_bounded_length():
    lines = Lines()
    told = [line for _ in range(10) for line in lines.feed(b"x" * (MAX_LINE_CHARS // 3))]
    assert told == ["x" * MAX_LINE_CHARS] * 3
    assert [len(line) for line in cut(b"y" * (2 * MAX_LINE_CHARS + 1) + b"\nz")] == [
        MAX_LINE_CHARS,
        MAX_LINE_CHARS,
        1,
        1,
    ]


def test_a_line_as_long_as_can_be_told_at_once_is_one_wherever_it_is_cut():
    lines = Lines()
    assert [*lines.feed(b"x" * MAX_LINE_CHARS), *lines.feed(b"\nz\n")] == ["x" * MAX_LINE_CHARS, "z"]
