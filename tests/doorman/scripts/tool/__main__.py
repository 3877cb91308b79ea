# python -m tool
from alike import check

from .parts import build

count = 0


def work(x):
    global count
    count += 1
    return build(x).x, __package__, work.__name__


def calls(pool):
    print(pool.submit(work, 3).result())


if __name__ == "__main__":
    check(calls)
