"""``python -m twohop``."""

import sys

from twohop.cli import main

sys.exit(main())
