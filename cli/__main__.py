"""``python -m bksdm.cli``."""

import sys

from bksdm.cli import main

sys.exit(main())
