import dataclasses
import enum
from typing import NamedTuple, TypedDict

from alike import check


@dataclasses.dataclass(frozen=True, order=True)
class Version:
    major: int
    minor: int = dataclasses.field(default=0, compare=False)


@dataclasses.dataclass(slots=True, kw_only=True)
class Node:
    children: list["Node"] = dataclasses.field(default_factory=list)


class Color(enum.Enum):
    RED = "r"
    BLUE = "b"


class Flags(enum.IntFlag):
    A = 1
    B = 2


class Pair(NamedTuple):
    left: int
    right: str = "r"


class Row(TypedDict):
    x: int


def swap(version, color, pair, flags):
    right = color is Color.RED, type(pair) is Pair, type(version) is Version, flags is Flags.A | Flags.B
    return right, Version(pair.left, 7), Color.BLUE, Pair(1), Flags.B, Row(x=1), Node(children=[Node()])


def calls(pool):
    right, version, color, pair, flags, row, node = pool.submit(
        swap, Version(1), Color.RED, Pair(3), Flags.A | Flags.B
    ).result()
    print(right, version, version == Version(3), color is Color.BLUE, pair, type(pair) is Pair, flags, row, node)
    print(type(node.children[0]) is Node, hash(version) == hash(Version(3)), version < Version(4))


if __name__ == "__main__":
    check(calls)
