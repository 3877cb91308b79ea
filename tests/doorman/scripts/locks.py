import os
import sqlite3
import threading

from alike import check

LOCK = threading.Lock()
READY = threading.Condition()
LOCAL = threading.local()
LOCAL.name = "module"
NULL = open(os.devnull, "w")
DATABASE = sqlite3.connect(":memory:", check_same_thread=False)
DATABASE.execute("create table t (x)")


def guarded(n):
    with LOCK, READY:
        NULL.write("x")
        DATABASE.execute("insert into t values (?)", (n,))
        return n, LOCAL.name, DATABASE.execute("select count(*) from t").fetchone()[0] >= 1


def calls(pool):
    print([pool.submit(guarded, n).result() for n in range(3)])


if __name__ == "__main__":
    check(calls)
