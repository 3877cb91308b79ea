from alike import check


class Plugin:
    registry = {}

    def __init_subclass__(cls, /, key=None, **options):
        super().__init_subclass__(**options)
        Plugin.registry[key or cls.__name__] = cls

    def run(self):
        return type(self).__name__


class Reader(Plugin, key="read"):
    pass


class Writer(Plugin):
    partner = Reader


HOOKS = []


def hook(fn):
    HOOKS.append(fn)
    return fn


@hook
def first(x):
    return x + 1


@hook
def second(x):
    return x * 2


def run(name, x):
    for fn in HOOKS:
        x = fn(x)
    return (
        x,
        Plugin.registry[name]().run(),
        sorted(Plugin.registry),
        len(HOOKS),
        Plugin.__subclasses__() == [Reader, Writer],
    )


def calls(pool):
    print(pool.submit(run, "read", 3).result(), pool.submit(run, "Writer", 4).result())
    print(pool.submit(Writer().run).result(), type(pool.submit(Writer).result()) is Writer, sorted(Plugin.registry))


if __name__ == "__main__":
    check(calls)
