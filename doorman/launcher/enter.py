"""Enter: what ``python -m`` runs to become a worker; a module that nothing else imports, as runpy wants it."""

import sys

from doorman._worker.main import main

if __name__ == "__main__":
    sys.exit(main())
