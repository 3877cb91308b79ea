from alike import check

TABLE = list(range(200_000))
INDEX = {n: str(n) for n in range(1000)}


class Unpicklable(dict):
    def __reduce__(self):
        raise AssertionError("a global travels")


CONFIG = Unpicklable(size=3)


def look(n):
    return TABLE[n], INDEX[n], CONFIG["size"], len(TABLE)


def calls(pool):
    print(list(pool.map(look, range(3))))


if __name__ == "__main__":
    check(calls)
