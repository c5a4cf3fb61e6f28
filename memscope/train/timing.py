"""Clocks of the training loop: throughput without the pauses, where a step's time goes, and the bar of steps."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from memscope.base.work import progress


class Throughput:
    """Tokens per second of training alone; validation and saving run inside ``paused()``."""

    def __init__(self, tokens_per_step: int):
        self.tokens_per_step = tokens_per_step
        self.steps, self.seconds = 0, 0.0
        self._started = time.perf_counter()
        self._last = (0, 0.0)

    def step(self) -> None:
        """Count one finished step."""
        now = time.perf_counter()
        self.seconds += now - self._started
        self._started = now
        self.steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time spent in this block."""
        self.seconds += time.perf_counter() - self._started
        yield
        self._started = time.perf_counter()

    def recent(self) -> float:
        """Tokens per second since the last call."""
        steps, seconds = self.steps - self._last[0], self.seconds - self._last[1]
        self._last = (self.steps, self.seconds)
        return steps * self.tokens_per_step / seconds if seconds > 0 else 0.0

    def overall(self) -> float:
        """Tokens per second since the start."""
        return self.steps * self.tokens_per_step / self.seconds if self.seconds > 0 else 0.0


class StepClock:
    """Seconds that the parts of one step took; does nothing, and costs nothing, when off."""

    def __init__(self, device: torch.device, on: bool):
        self.on, self._device = on, device
        self.seconds: dict[str, float] = {}
        self._last = self._now() if on else 0.0

    def lap(self, part: str) -> None:
        """Add the time since the last lap to ``part``."""
        if self.on:
            now = self._now()
            key = f"{part}_seconds"
            self.seconds[key] = self.seconds.get(key, 0.0) + now - self._last
            self._last = now

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class Progress:
    """A bar of steps on stderr, and lines above it; only a terminal shows the bar, only the main process says lines."""

    def __init__(self, first_step: int, n_steps: int, is_main: bool):
        self._is_main = is_main
        self._bar = progress("training", n_steps, "steps", first_step, shown=is_main)

    def say(self, line: str) -> None:
        """Write a line above the bar."""
        if self._is_main:
            self._bar.write(line, file=sys.stderr)

    def step(self) -> None:
        """Count one finished step."""
        self._bar.update()

    def show_loss(self, loss: float) -> None:
        """Put the loss behind the bar, from its next update on."""
        self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()
