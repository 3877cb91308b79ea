"""Entry point of ``python -m doorman``."""

import sys

from doorman.cli import main

if __name__ == "__main__":
    sys.exit(main())
