from alike import check, shown


def read():
    return only_under_guard


def bound():
    return "only_under_guard" in globals(), "late" in globals(), "read" in globals()


def calls(pool):
    print(shown(pool.submit(read)), pool.submit(bound).result())


if __name__ == "__main__":
    only_under_guard = late = 1
    check(calls)
