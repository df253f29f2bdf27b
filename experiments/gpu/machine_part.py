"""Measures part a: the machine's best rates, from which the floors of all other figures follow."""

from __future__ import annotations

import torch
from given import Given, Note
from gpu_rows import best_seconds, machine_rates, measured, toy


def measure(given: Given, note: Note) -> None:
    """Notes the rates of large matrix products and copies, and the time to start an operation."""
    plan = toy() if given.toy else measured()
    note(machine_rates(plan))
    if given.device.type == "cuda":
        about = torch.cuda.get_device_properties(given.device)
        note({"memory, GiB": about.total_memory / 2**30, "processors": about.multi_processor_count})
    n = plan.square // 2
    a, b = (torch.randn(n, n, device=given.device) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    try:
        for name, precision in (("fp32", "highest"), ("tf32", "high")):
            torch.set_float32_matmul_precision(precision)
            seconds = best_seconds(lambda: torch.mm(a, b), repeats=5)
            note({f"matmul {name}, operations/s": 2 * n**3 / seconds})
    finally:
        torch.set_float32_matmul_precision(before)
    # A step of decoding has thousands of small operations, which the host starts one by one.
    small, count = torch.zeros(32, device=given.device), 100 if given.toy else 1000

    def many() -> torch.Tensor:
        total = small
        for _ in range(count):
            total = total + 1
        return total

    note({"starting one operation, s": best_seconds(many, repeats=3) / count})
