import copy
import io
import pickle
import shelve
import tempfile

from alike import check


class Point:
    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return type(other) is Point and other.x == self.x

    __hash__ = None


class Odd:
    def __reduce__(self):
        return make_odd, ()


def make_odd():
    return ODD


ODD = Odd()


def dump(point):
    return pickle.dumps(point)


def load(data):
    point = pickle.loads(data)
    return type(point) is Point, point, copy.deepcopy(point) == point, pickle.loads(pickle.dumps(ODD)) is ODD


def shelf():
    with tempfile.TemporaryDirectory() as folder:
        with shelve.open(f"{folder}/models") as models:
            models["p"] = Point(5)
        with shelve.open(f"{folder}/models") as models:
            return models["p"]


class Persistent(pickle.Pickler):
    def persistent_id(self, thing):
        return "odd" if thing is ODD else None


def persistent():
    file = io.BytesIO()
    Persistent(file).dump([ODD])
    return b"odd" in file.getvalue()


def calls(pool):
    data = pickle.dumps(Point(3))
    right, point, *rest = pool.submit(load, data).result()
    print(right, type(point) is Point, point == Point(3), rest, pool.submit(persistent).result())
    print(pickle.loads(pool.submit(dump, Point(4)).result()) == Point(4), pool.submit(shelf).result() == Point(5))
    print(pool.submit(make_odd).result() is ODD)


if __name__ == "__main__":
    check(calls)
