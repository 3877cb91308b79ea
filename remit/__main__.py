"""Entry point of ``python -m remit``."""

import sys

from remit.cli import main

if __name__ == "__main__":
    sys.exit(main())
