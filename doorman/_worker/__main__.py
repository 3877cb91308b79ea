"""Entry point of ``python -m doorman._worker``: a worker that is started as a program of its own."""

import sys

from doorman._worker.main import main

if __name__ == "__main__":
    sys.exit(main())
