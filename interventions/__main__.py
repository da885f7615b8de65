"""``python -m interventions``."""

import sys

from interventions.cli import main

if __name__ == "__main__":
    sys.exit(main())
