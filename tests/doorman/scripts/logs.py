import logging
import logging.config
import sys
import warnings

from alike import check

logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(name)s %(message)s")
logging.addLevelName(25, "NOTICE")
logging.config.dictConfig({"version": 1, "incremental": True, "loggers": {"app.db": {"level": "ERROR"}}})
log = logging.getLogger("app")
warnings.simplefilter("error")


class Collector(logging.Handler):
    lines = []

    def emit(self, record):
        self.lines.append(self.format(record))


log.addHandler(Collector())


def work(n):
    Collector.lines.clear()
    log.info("call %d", n)
    log.log(25, "notice")
    logging.getLogger("app.db").warning("hidden")
    try:
        warnings.warn("careful", stacklevel=1)
    except UserWarning as warning:
        log.error("%s", warning)
    root = logging.getLogger()
    return list(Collector.lines), root.level, len(root.handlers), logging.getLevelName(25), len(log.handlers)


def calls(pool):
    print(pool.submit(work, 1).result(), pool.submit(work, 2).result())


if __name__ == "__main__":
    log.propagate = False
    logging.getLogger().handlers.clear()
    check(calls)
