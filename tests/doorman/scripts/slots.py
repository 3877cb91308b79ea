import copyreg
import weakref

from alike import check


class Slotted:
    __slots__ = ("__weakref__", "x", "y")

    def __init__(self, x):
        self.x = x


class Child(Slotted):
    __slots__ = ("z",)

    def __getstate__(self):
        return self.x, self.z

    def __setstate__(self, state):
        self.x, self.z = state


class Complex:
    def __init__(self, a):
        self.a = a


copyreg.pickle(Complex, lambda value: (rebuild, (value.a, "copyreg")))


def rebuild(a, how):
    made = Complex(a)
    made.how = how
    return made


class New:
    def __new__(cls, key):
        made = super().__new__(cls)
        made.key = key
        return made

    def __getnewargs__(self):
        return (self.key,)


def work(child, value, new):
    reference = weakref.ref(child)
    child.z += 1
    return child, value, new, reference() is child, hasattr(child, "y"), value.how, new.key


def calls(pool):
    child = Child(1)
    child.z = 2
    child, value, new, *rest = pool.submit(work, child, Complex(3), New("k")).result()
    print(type(child) is Child, child.x, child.z, value.a, value.how, type(new) is New, new.key, rest)


if __name__ == "__main__":
    check(calls)
