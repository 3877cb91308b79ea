import sys

from alike import check

sys.path.insert(0, __file__.rpartition("/")[0] + "/library")
import beside

try:
    if __name__ == "__never__":
        raise SystemExit(4)
    if sys.version_info >= (3, 11) and "__main__" == __name__:
        from collections import OrderedDict as under_guard

        def only_here():
            return 1
except ImportError:
    under_guard = None
else:
    ALWAYS = 5


def work(x):
    return (
        beside.double(x),
        ALWAYS,
        "under_guard" in globals(),
        "only_here" in globals(),
        type(beside.Kind(1)) is beside.Kind,
    )


def calls(pool):
    print(pool.submit(work, 3).result(), pool.submit(beside.Kind, 4).result().x, pool.submit(beside.double, 2).result())


if not __name__ != "__main__":
    pass
if __name__ != "__main__":
    IMPORTED = True
else:
    check(calls)
