# state
import threading

from alike import check, outcome

SCALE = 10
LOCK = threading.Lock()


class Base:
    def name(self):
        return "base"


def scaled(n):
    def inner(x):
        with LOCK:
            return SCALE * n * x, helper(x)

    return inner


def helper(x):
    return x, SCALE


def local_class():
    class Derived(Base):
        def name(self):
            return super().name() + " derived"

    return Derived


def calls(pool):
    print(outcome(lambda x: x + SCALE, 1), outcome(scaled(3), 2), outcome(lambda: [f(1) for f in (helper, scaled(1))]))
    kind = local_class()
    print(outcome(lambda: (kind().name(), isinstance(kind(), Base))), outcome(lambda: under), outcome(defined_under, 1))


if __name__ == "__main__":
    under = "guard"

    def defined_under(x):
        return under, helper(x)

    check(calls)
