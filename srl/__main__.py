"""`python -m srl`."""

import sys

from srl.cli import main

sys.exit(main())
