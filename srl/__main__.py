"""Runs the command line of `python -m srl`."""

import sys
from pathlib import Path

_PACKAGES = (
    "torch", "numpy", "transformers", "trl", "accelerate", "datasets", "pyarrow", "sympy", "rich",
    "cydifflib", "rapidfuzz", "math_verify", "yaml",
)  # fmt: skip


def run() -> int:
    """Runs the command line; says so if this Python lacks a package that the program needs.

    Commands import packages when they need them, so any moment may show that one is missing.

    Returns:
        The exit code; 2 if a package is missing.
    """
    try:
        from srl.commands.cli import main

        return main()
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        own = Path(__file__).resolve().parents[1] / ".venv/bin/python"
        use = f"Use the environment that make setup made: {own} -m srl …"
        if not own.is_file() or Path(sys.executable) == own:
            use = "Install what is missing with: make clean, then make setup"
        sys.stderr.write(f"srl: {sys.executable} has no package {error.name}. {use}\n")
        return 2


sys.exit(run())
