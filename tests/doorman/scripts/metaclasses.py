from alike import check


class Meta(type):
    made = []

    def __new__(mcls, name, bases, namespace, **options):
        cls = super().__new__(mcls, name, bases, namespace)
        cls.options = options
        mcls.made.append(name)
        return cls

    def __len__(cls):
        return len(cls.made)

    def __call__(cls, *args):
        made = super().__call__(*args)
        made.by = "meta"
        return made


class Field:
    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, instance, owner):
        return self if instance is None else instance.__dict__[self.name]

    def __set__(self, instance, value):
        instance.__dict__[self.name] = value * 2


class Model(metaclass=Meta, table="models"):
    x = Field()

    def __init__(self, x):
        self.x = x


class Singleton:
    _instance = None

    def __new__(cls):
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance


ONLY = Singleton()


def work(model, only):
    return model.x, model.by, len(Model), Model.options, type(Model) is Meta, Model.x.name, only is ONLY, Model(2)


def calls(pool):
    *rest, model = pool.submit(work, Model(1), ONLY).result()
    print(rest, type(model) is Model, model.x, Meta.made, pool.submit(Singleton).result() is ONLY)


if __name__ == "__main__":
    check(calls)
