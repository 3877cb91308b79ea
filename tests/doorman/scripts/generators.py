import itertools

from alike import check, shown


def numbers(n):
    for i in range(n):
        got = yield i
        if got:
            yield got * 100


class Tree:
    def __init__(self, *children):
        self.children = children

    def __iter__(self):
        yield self
        for child in self.children:
            yield from child


def drive(n):
    generator = numbers(n)
    return next(generator), generator.send(3), list(itertools.chain(generator, numbers(2)))


def count(tree):
    return sum(1 for _ in tree)


def bad():
    return numbers(3)


def calls(pool):
    print(pool.submit(drive, 4).result(), pool.submit(count, Tree(Tree(), Tree(Tree()))).result())
    print("pickle" in str(shown(pool.submit(bad))))


if __name__ == "__main__":
    check(calls)
