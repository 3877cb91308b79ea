# state, without a guard
import functools
import multiprocessing
import pickle
from dataclasses import dataclass

from alike import check

model = None
count = 0
TABLE = {"a": 1}


@dataclass
class Point:
    x: int
    made = 0

    def moved(self):
        type(self).made += 1
        return Point(self.x + 1)


@functools.cache
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


def load():
    global model
    model = "loaded"


def square(x):
    return x * x


def work(point):
    global count
    count += 1
    TABLE[count] = count
    same = pickle.loads(pickle.dumps(point)) == point
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return model, count, len(TABLE), same, fib(20), pool.map(square, range(3)), point.moved(), Point.made


def calls(pool):
    for n in range(3):
        *rest, point, made = pool.submit(work, Point(n)).result()
        print(rest, point == Point(n + 1), type(point) is Point, made, Point.made)
    print(pool.submit(fib, 30).result(), count, TABLE)
    print(list(pool.map(functools.partial(square), range(3))))


check(calls, initializer=load)
