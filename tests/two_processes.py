"""Trainings of two processes each, forked from one that has imported everything, started as torchrun starts them.

python two_processes.py     prints, by name, how the processes of each ended; what they said is in NAME.RANK.txt
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

import clearhead.train.run  # noqa: F401 (before anything is forked)
from clearhead.cli import main
from clearhead.train import checkpoints
from tiny_task import SMALL, at_batch

TWO = [part for value in [*SMALL, "train.devices=2"] for part in ("--set", value)]
Happens = Callable[[int], object]
"""What happens in the process of that rank while its batch is made."""


def status(code: object) -> int:
    return code if isinstance(code, int) else int(code is not None)


def work(name: str, rank: int, port: int, arguments: list[str], batch: int, happens: Happens) -> None:
    """Be one of the processes, and end."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    said = os.open(f"{name}.{rank}.txt", os.O_WRONLY | os.O_CREAT, 0o644)
    os.dup2(said, 1)
    os.dup2(said, 2)
    try:
        with ExitStack() as entered:
            if batch:
                entered.enter_context(at_batch(batch, lambda: happens(rank)))
            main(arguments)
    except SystemExit as ended:
        sys.stderr.flush()
        os._exit(status(ended.code))


def both(name: str, *arguments: str, batch: int = 0, happens: Happens = print) -> list[int]:
    """How the two processes of a training ended."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun has one
    children: list[int] = []
    for rank in range(2):
        children.append(os.fork())
        if not children[-1]:
            work(name, rank, store.port, ["train", *arguments], batch, happens)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def only(rank: int, number: int) -> Happens:
    """A signal to the process of that rank."""
    return lambda own: os.kill(os.getpid(), number) if own == rank else None


def keep_state(rank: int) -> None:
    Path(f"whole.{rank}.state").write_bytes(torch.get_rng_state().numpy().tobytes())


def forget_one(folder: Path) -> None:
    """Leave the random state of the first process alone in the newest checkpoint, as older ones had it."""
    path = checkpoints.newest(folder)
    content = checkpoints.read(path)
    content["random"] = content["random"][0]
    torch.save(content, path)


if __name__ == "__main__":
    ended = {
        "whole": both("whole", "g2p", "--name", "whole", *TWO, batch=1, happens=keep_state),
        "part": both("part", "g2p", "--name", "part", *TWO, batch=7, happens=only(1, signal.SIGTERM)),
        "resumed": both("resumed", "g2p", "--name", "part", "--resume"),
        "killed": both("killed", "g2p", "--name", "killed", *TWO, batch=7, happens=only(1, signal.SIGKILL)),
        "refused": both("refused", "seq2seq", "--name", "refused", "--train", "nowhere.tsv", "--valid", "nowhere.tsv",
                        "--set", "train.devices=2"),
        "devices": both("devices", "g2p", "--name", "devices", *TWO, "--set", "train.devices=1"),
    }  # fmt: skip
    forget_one(Path("runs/killed/checkpoints"))
    ended["fewer"] = both("fewer", "g2p", "--name", "killed", "--resume")
    print(json.dumps(ended))
