import asyncio
import contextlib

from alike import check

LIMIT = asyncio.Semaphore(2)


async def fetch(n):
    async with LIMIT:
        await asyncio.sleep(0)
        return n * 2


async def agen(n):
    for i in range(n):
        yield await fetch(i)


@contextlib.asynccontextmanager
async def session():
    yield "session"


async def main(n):
    async with session() as name, asyncio.TaskGroup() as group:
        tasks = [group.create_task(fetch(i)) for i in range(n)]
    return name, [task.result() for task in tasks], [x async for x in agen(2)]


def run(n):
    return asyncio.run(main(n))


async def through_executor(pool):
    loop = asyncio.get_running_loop()
    return await asyncio.gather(*(asyncio.wrap_future(pool.submit(run, n)) for n in range(2))), loop.is_running()


def calls(pool):
    print(pool.submit(run, 3).result(), asyncio.run(through_executor(pool)))


if __name__ == "__main__":
    check(calls)
