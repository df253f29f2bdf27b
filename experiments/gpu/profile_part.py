"""Measures part f: how an SRL step spends its time on the device, and where the host waits."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from given import Given, Note
from gsm8k_part import rewards_of, srl_settings
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from srl import SRLTrainer
from srl.config.settings import SRLConfig

PROBLEMS = 300
STEPS = 4  # two steps to warm up, one that is profiled, one whose waits are counted


def measure(given: Given, note: Note) -> None:
    """Notes seconds, the device's idle share of them, the longest operations, and the waits."""
    model, tokenizer = given.policy()
    settings = srl_settings(given, profiled=True)
    config = SRLConfig(**settings, max_steps=STEPS, output_dir=str(given.folder / "profile"))
    trainer = _Profiled(
        model,
        config,
        given.problems()[0][:PROBLEMS],
        step_rewards=rewards_of({"similarity": 1.0}, config),
        processing_class=tokenizer,
    )
    trainer.note = note
    try:
        trainer.train()
    finally:
        trainer.rewards.close()
    logged = [line for line in trainer.state.log_history if "seconds/collect" in line]
    kept = ("seconds/collect", "seconds/update", "tokens", "sampler_gap", "groups_kept")
    note({"steps, unprofiled": [{k: x[k] for k in kept if k in x} for x in logged[:2]]})


class _Profiled(SRLTrainer):
    """Our trainer. It profiles both halves of its third step, and counts the waits of its fourth.

    The halves are collecting rollouts and the update. Waits are counted only with a GPU.
    """

    note: Note

    def training_step(self, *args: object, **more: object) -> torch.Tensor:
        step = self.state.global_step + 1
        if step == STEPS and torch.cuda.is_available():
            return self._with_waits(*args, **more)
        loss = super().training_step(*args, **more)  # type: ignore[arg-type]
        if step == STEPS - 1:
            self._half.__exit__(None, None, None)
            self.note({"update": figures(self._half, time.perf_counter() - self._began)})
        return loss

    def _collect(self):  # type: ignore[no-untyped-def]
        if self.state.global_step + 1 != STEPS - 1:
            return super()._collect()
        with _profile() as half:
            began = time.perf_counter()
            collected = super()._collect()
            _wait()
            seconds = time.perf_counter() - began
        self.note({"collecting": figures(half, seconds)})
        self._half, self._began = _profile(), time.perf_counter()
        self._half.__enter__()
        return collected

    def _with_waits(self, *args: object, **more: object) -> torch.Tensor:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                loss = super().training_step(*args, **more)  # type: ignore[arg-type]
            finally:
                torch.cuda.set_sync_debug_mode("default")
        places = Counter(
            f"{'/'.join(Path(warning.filename).parts[-3:])}:{warning.lineno}"
            for warning in caught
            if "synchroniz" in str(warning.message)
        )
        self.note({"waits of the host in one step": dict(places.most_common(20))})
        return loss


def _profile() -> profile:
    """Returns a profiler of the GPU alone if there is one, else of the CPU.

    With a GPU, the host's operations are left out because there would be millions.
    """
    cuda = torch.cuda.is_available()
    return profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU])


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def figures(profiled: profile, seconds: float, top: int = 15) -> dict[str, object]:
    """Returns seconds, the device's idle share, and its longest operations by name."""
    kind = DeviceType.CUDA if torch.cuda.is_available() else DeviceType.CPU
    events = [event for event in profiled.events() or () if event.device_type == kind]
    spans = [(event.time_range.start, event.time_range.end) for event in events]
    times: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for event in events:
        times[event.name] += event.time_range.end - event.time_range.start
        counts[event.name] += 1
    working = busy(spans) / 1e6
    return {
        "seconds": seconds,
        "device idle, share": max(0.0, 1 - working / seconds),
        "operations": len(events),
        "longest": {
            name[:90]: f"{time / 1e3:,.1f} ms, {counts[name]:,} times"
            for name, time in times.most_common(top)
        },
    }


def busy(spans: Sequence[tuple[float, float]]) -> float:
    """Returns the total time during which at least one span is active."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
