# state
import itertools

from alike import check

count = 0
numbers = itertools.count()
seen = {}


class Total:
    sum = 0

    @classmethod
    def add(cls, n):
        cls.sum += n
        return cls.sum


def tick(name="x"):
    global count
    count += 1
    tick.calls = getattr(tick, "calls", 0) + 1
    seen.setdefault(name, []).append(next(numbers))
    return count, tick.calls, seen


def calls(pool):
    print([pool.submit(tick).result() for _ in range(3)], pool.submit(tick, name="y").result())
    print([pool.submit(Total.add, 2).result() for _ in range(3)], count, seen, Total.sum, hasattr(tick, "calls"))


if __name__ == "__main__":
    check(calls)
