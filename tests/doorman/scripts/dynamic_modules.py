# state
import json
import sys
import types

from alike import check

made = types.ModuleType("made_here")
exec("def answer(x):\n    return x, __name__\nclass Made: pass", made.__dict__)
sys.modules["made_here"] = made
for name in ("alpha", "beta"):
    globals()[name] = eval(f"lambda x: ({name!r}, x)")
    globals()[name].__qualname__ = name

_encode = json.dumps
json.dumps = lambda value: "patched " + _encode(value)
Row = type("Row", (dict,), {"kind": "row"})


def work(x):
    return made.answer(x), sys.modules["made_here"] is made, alpha(x), json.dumps([x]), Row(a=1)


def calls(pool):
    *rest, row = pool.submit(work, 1).result()
    print(
        rest, type(row) is Row, pool.submit(made.answer, 2).result(), type(pool.submit(made.Made).result()) is made.Made
    )
    print(pool.submit(Row, b=2).result().kind)


if __name__ == "__main__":
    check(calls)
