from alike import check

LEVEL = "module"
ITEMS = []


def level(x):
    return LEVEL, ITEMS, x


def calls(pool):
    global LEVEL
    LEVEL = "before"
    ITEMS.append("parent")
    print(pool.submit(level, 1).result())
    LEVEL = "after"
    print(pool.submit(level, 2).result())
    ITEMS.clear()


if __name__ == "__main__":
    LEVEL = "guard"
    check(calls)
