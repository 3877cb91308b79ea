import random

from alike import check

random.seed(7)
FIRST = random.random()
own = random.Random(3)


def draw():
    return FIRST, random.random(), own.random()


def calls(pool):
    print(pool.submit(draw).result())


if __name__ == "__main__":
    check(calls)
