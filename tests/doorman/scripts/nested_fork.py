import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from alike import check


def square(x):
    return x * x


def put(queue, x):
    queue.put(square(x))


def pool_of(kind):
    context = multiprocessing.get_context(kind)
    with context.Pool(1) as pool:
        squares = pool.map(square, range(4))
    queue = context.SimpleQueue()
    process = context.Process(target=put, args=(queue, 5))
    process.start()
    process.join()
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        return squares, queue.get(), list(executor.map(square, [6]))


def calls(pool):
    print(pool.submit(pool_of, "fork").result())


if __name__ == "__main__":
    check(calls)
