import pathlib
import sys

from alike import check

HERE = pathlib.Path(__file__).name


class Local:
    pass


def who(local):
    main = sys.modules["__main__"]
    return (
        HERE, pathlib.Path(__file__).is_absolute(), sys.argv[2:], __name__, who.__module__, Local.__module__,
        main is sys.modules[__name__], main.Local is Local, type(local) is Local, main.__file__ == __file__,
        __spec__, __package__, sys.path[0] == str(pathlib.Path(__file__).parent),
    )  # fmt: skip


def calls(pool):
    print(pool.submit(who, Local()).result())


if __name__ == "__main__":
    check(calls)
