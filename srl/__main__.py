"""Runs the command line of `python -m srl`."""

import sys

from srl.commands.cli import main

sys.exit(main())
