import abc
from typing import Annotated, Generic, Protocol, TypeVar, get_type_hints, runtime_checkable

from alike import check

T = TypeVar("T", bound="Sized")


@runtime_checkable
class Sized(Protocol):
    def size(self) -> int: ...


class Stack(Generic[T]):
    def __init__(self, *items: T) -> None:
        self.items = items

    def size(self) -> int:
        return len(self.items)


class Base(abc.ABC):
    @abc.abstractmethod
    def area(self) -> "Annotated[float, 'm2']": ...


class Square(Base):
    def area(self):
        return 4.0


Base.register(Stack)


def look(stack, square):
    try:
        Base()
        made = True
    except TypeError:
        made = False
    return (
        isinstance(stack, Sized), isinstance(square, Sized), isinstance(stack, Base), square.area(), made,
        get_type_hints(Base.area, include_extras=True)["return"] == Annotated[float, "m2"],
        Stack[Sized].__args__ == (Sized,),
        T.__bound__.__forward_arg__,
    )  # fmt: skip


def calls(pool):
    print(pool.submit(look, Stack(1, 2), Square()).result(), pool.submit(Stack[Sized], 1).result().size())


if __name__ == "__main__":
    check(calls)
