"""Several processes that train together: how they meet, where each one's randomness begins, what one says of another.

Lightning starts the others from the first, when all is prepared. torchrun starts all at once: there the first tells the
others when they can begin.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch import Tensor

from clearhead.errors import ConfigError
from clearhead.train.config import Config

_GRACE = 30.0
"""Seconds in which a process finds out by itself that another one has ended; then it is ended."""


def rank() -> int:
    """The number of this process, from 0, by what Lightning or torchrun tell each of them."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def is_first() -> bool:
    """Return whether this is the first of the processes that train together."""
    return rank() == 0


def begin_random(seed: int) -> None:
    """Let torch's random numbers begin where no other process begins, so that each drops other values."""
    torch.manual_seed(int(np.random.SeedSequence([seed, rank()]).generate_state(1)[0]))


def gathered(trainer: Trainer, states: list[Tensor]) -> list[list[Tensor]]:
    """The states of all processes, in each of them."""
    if trainer.world_size == 1:
        return [states]
    found: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(found, states)
    return found


class Others:
    """The processes that torchrun started beside this one; they wait until the first is `ready`, or has failed.

    In the first it is a block. In the others, `wait`.
    """

    def __init__(self, run: Path) -> None:
        self._store, self._said = None, False
        if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
            self._store = next(iter(torch.distributed.rendezvous("env://", timeout=timedelta(minutes=5))))[0]
        self._key = f"clearhead {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')} {run}"

    def check(self, config: Config) -> None:
        """Raise ConfigError where torchrun started another number of processes than are configured."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if self._store is not None and count != config.train.devices:
            raise ConfigError(
                f"torchrun started {count} processes, and train.devices is {config.train.devices}: "
                f"--set train.devices={count}"
            )

    def __enter__(self) -> "Others":
        return self

    def __exit__(self, *_: object) -> None:
        self._say("failed")

    def ready(self) -> None:
        """Let the others begin."""
        self._say("ready")

    def _say(self, word: str) -> None:
        if self._store is not None and not self._said:
            self._store.set(self._key, word)
        self._said = True

    def wait(self) -> None:
        """Return when the first process is ready; ends this one where that has failed, and has said why."""
        if self._store is None:
            return
        try:
            while not self._store.check([self._key]):
                time.sleep(0.1)
            if self._store.get(self._key) == b"ready":
                return
        except torch.distributed.DistError:  # it has ended, and what it kept is gone with it
            pass
        raise SystemExit(2)


class Processes(DDPStrategy):
    """Lightning's, but where a process is lost it says which, instead of killing all."""

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)


class Launcher(_SubprocessScriptLauncher):
    """Starts the other processes, and watches them."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        over = threading.Event()
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            threading.Thread(target=self._watch, args=(over,), name="other processes", daemon=True).start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        try:
            return function(*args, **kwargs)
        except BaseException:
            self.kill(signal.SIGKILL)
            raise
        finally:
            over.set()

    def _watch(self, over: threading.Event) -> None:
        """End this process where another is lost and it does not notice: some operations then wait for ever."""
        while not (lost := self.lost()):
            if over.wait(1.0):
                return
        if not over.wait(_GRACE):
            print(f"error: {lost}", file=sys.stderr, flush=True)
            self.kill(signal.SIGKILL)
            os._exit(2)

    def lost(self, wait: float = 0.0) -> str | None:
        """Say which of the other processes has failed; None: none has, within some seconds."""
        for number, process in enumerate(self.procs, 2):
            try:
                status = process.wait(wait)
            except subprocess.TimeoutExpired:
                continue
            if status:
                how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
                return f"process {number} of {self.num_processes} (PID {process.pid}) {how}"
        return None


def lost(trainer: Trainer, error: BaseException) -> str | None:
    """Say which other process has ended, where that is why an operation failed; None where it is not."""
    if trainer.world_size == 1 or not isinstance(error, RuntimeError):
        return None
    launcher = trainer.strategy.launcher
    found = launcher.lost(wait=2.0) if isinstance(launcher, Launcher) else None
    if found is None and re.search(r"gloo|nccl|connection (closed|reset)", str(error), re.IGNORECASE):
        return "another process of this training has ended"
    return found
