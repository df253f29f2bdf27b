"""Turns out-of-memory errors into one message that names the settings to lower."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from srl.errors import OutOfMemoryError

# The words of torch, CUDA and Metal for errors whose class does not say "out of memory".
_WORDS = re.compile(
    r"out of memory|can(no|')t allocate memory|ALLOC_FAILED|not enough memory", re.I
)
_GIB = 2**30


@contextmanager
def fits_into_memory(
    what: str, device: torch.device, settings: Mapping[str, object], advice: str
) -> Iterator[None]:
    """Turns an out-of-memory error inside this context into an error with advice.

    Args:
        what: what is computed.
        device: the device of the computation.
        settings: settings that determine the memory, with their current values; smaller values
            need less.
        advice: what else to do.

    Raises:
        OutOfMemoryError: the computation did not fit into memory.
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not _WORDS.search(str(error)):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        values = ", ".join(f"{name} ({value} now)" for name, value in settings.items())
        raise OutOfMemoryError(
            f"out of memory while {what}; at its peak the process held {_peak(device)}. Lower "
            f"{values}; {advice}. What failed: {reason}"
        ) from error


def _peak(device: torch.device) -> str:
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        most = torch.cuda.max_memory_allocated(device)
        return f"{most / _GIB:.1f} of the {total / _GIB:.1f} GiB of {device}"
    unit = 1 if sys.platform == "darwin" else 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f"{most / _GIB:.1f} GiB of main memory"
