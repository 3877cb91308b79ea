import functools
import operator

from alike import check


class Adder:
    def __init__(self, n):
        self.n = n

    def __call__(self, x):
        return x + self.n

    def twice(self, x):
        return self(self(x))

    @classmethod
    def of(cls, n, x):
        return cls(n)(x), cls.__name__

    @staticmethod
    def plain(x):
        return -x

    class Inner:
        @staticmethod
        def deep(x):
            return x, Adder.Inner.__qualname__


def logged(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return fn.__name__, fn(*args, **kwargs), wrapper.__wrapped__ is fn

    return wrapper


@logged
def power(base, exponent=2, /, *, scale=1):
    return scale * base**exponent


def defaults(x, adder=Adder(5), *, table={"a": 1}):
    return adder(x), table


def calls(pool):
    five = Adder(5)
    for fn, args in (
        (five, (1,)), (five.twice, (1,)), (Adder.of, (2, 3)), (Adder.plain, (4,)), (Adder.Inner.deep, (1,)),
        (functools.partial(power, 3), ()), (functools.partial(functools.partial(Adder.of, 1), x=2), ()),
        (power, (2, 5)), (operator.methodcaller("twice", 7), (five,)), (operator.attrgetter("n"), (five,)),
        (defaults, (1,)), (functools.partial(power, scale=3), (2,)), (map, (str, [1])),
    ):  # fmt: skip
        print(pool.submit(fn, *args).result() if fn is not map else list(pool.map(five, [1, 2])))


if __name__ == "__main__":
    check(calls)
