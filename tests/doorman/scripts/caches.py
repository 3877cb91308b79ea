# state
import functools

from alike import check


@functools.cache
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


@functools.lru_cache(maxsize=2)
def double(n):
    return 2 * n


class Table:
    @functools.cached_property
    def rows(self):
        return [double(3)]

    @staticmethod
    @functools.cache
    def size(n):
        return n + 1


def hits():
    double(7)
    return tuple(double.cache_info()), fib.cache_info().currsize, fib.__name__


def calls(pool):
    print(pool.submit(fib, 30).result(), pool.submit(double, 7).result(), pool.submit(double, 7).result())
    print(
        pool.submit(hits).result(), pool.submit(Table.size, 3).result(), pool.submit(getattr, Table(), "rows").result()
    )
    print(fib.cache_info().currsize)


if __name__ == "__main__":
    check(calls)
