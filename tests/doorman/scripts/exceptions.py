from alike import check


class AppError(Exception):
    code = 7


class Detailed(AppError):
    def __init__(self, where, why):
        super().__init__(where, why)
        self.where = where


class Frozen(Exception):
    def __str__(self):
        return "frozen"


def fail(kind):
    if kind == "chain":
        try:
            {}["x"]
        except KeyError as error:
            raise AppError("chained") from error
    if kind == "group":
        raise ExceptionGroup("both", [AppError(1), ValueError(2)])
    if kind == "note":
        error = AppError("noted")
        error.add_note("a note")
        raise error
    raise Frozen if kind == "frozen" else Detailed("here", ["why"])


def given(error):
    return type(error) is Detailed, error.where, error.code, isinstance(error, AppError)


def calls(pool):
    for kind in ("chain", "group", "note", "frozen", "detail"):
        error = pool.submit(fail, kind).exception()
        print(type(error) in (AppError, Detailed, Frozen, ExceptionGroup), type(error).__name__, error.args, str(error))
        print(getattr(error, "where", ""), getattr(error, "code", ""), getattr(error, "__notes__", ""))
    try:
        pool.submit(fail, "detail").result()
    except AppError as error:
        print("caught", error.where)
    print(pool.submit(given, Detailed("there", 1)).result())


if __name__ == "__main__":
    check(calls)
