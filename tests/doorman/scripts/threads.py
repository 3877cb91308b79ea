import atexit
import queue
import tempfile
import threading
import weakref

from alike import check

JOBS = queue.Queue()
DONE = queue.Queue()


def serve():
    while True:
        DONE.put(JOBS.get() * 2)


threading.Thread(target=serve, daemon=True).start()
FOLDER = tempfile.TemporaryDirectory()
atexit.register(FOLDER.cleanup)
finalizer = weakref.finalize(FOLDER, str)


def work(n):
    JOBS.put(n)
    with open(f"{FOLDER.name}/{n}", "x") as file:
        file.write("x")
    return DONE.get(timeout=20), threading.active_count() >= 2


def calls(pool):
    print([pool.submit(work, n).result() for n in range(2)])


if __name__ == "__main__":
    check(calls)
