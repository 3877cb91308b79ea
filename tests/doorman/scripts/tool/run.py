# python -m tool.run
import sys

from alike import check

from . import LOADED
from .parts import Part, build


class Own:
    pass


def work(x):
    from . import parts

    return build(x).x, parts.Part is Part, LOADED, __package__, __spec__.name, __name__, sys.argv[2:]


def calls(pool):
    print(pool.submit(work, 3).result(), type(pool.submit(build, 1).result()) is Part)
    print(type(pool.submit(Own).result()) is Own)


if __name__ == "__main__":
    check(calls)
