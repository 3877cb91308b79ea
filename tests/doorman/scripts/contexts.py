# state
import contextvars
import decimal
import os
import sys

from alike import check

USER = contextvars.ContextVar("USER", default="unset")
USER.set("module")
decimal.getcontext().prec = 5
sys.setrecursionlimit(1234)
os.environ["SCRIPT_SETS"] = "yes"


def who():
    before = USER.get()
    context = contextvars.copy_context()
    inner = context.run(lambda: (USER.set("inner"), USER.get())[1])
    return before, inner, USER.get(), decimal.Decimal(1) / 3, sys.getrecursionlimit(), os.environ["SCRIPT_SETS"]


def calls(pool):
    USER.set("parent")
    print(pool.submit(who).result(), pool.submit(who).result())


if __name__ == "__main__":
    check(calls)
