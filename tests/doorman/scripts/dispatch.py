import functools

from alike import check


class Shape:
    pass


class Circle(Shape):
    pass


@functools.singledispatch
def area(shape):
    return "unknown"


@area.register
def _(shape: Shape):
    return "shape"


@area.register(int)
def _(shape):
    return f"number {shape}"


class Printer:
    @functools.singledispatchmethod
    def show(self, what):
        return repr(what)

    @show.register
    def _(self, what: Circle):
        return "circle"


def both(shape):
    return area(shape), area.dispatch(type(shape)).__module__ == __name__, Printer().show(shape)


def calls(pool):
    print(list(pool.map(area, [Circle(), 3, "x"])), pool.submit(both, Circle()).result(), pool.submit(both, 4).result())


if __name__ == "__main__":
    check(calls)
