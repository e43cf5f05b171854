"""A training from beginning to end: from a configuration to a run folder that predicts, with scores and a report."""

import errno
import json
import logging
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, Trainer

from clearhead.data import Batches, Examples
from clearhead.errors import ConfigError, RunError
from clearhead.train import checkpoints, parts, precision, processes, starting
from clearhead.train.config import TASKS, Config
from clearhead.train.evaluation import Evaluation, validation_loss
from clearhead.train.folder import RunFolder, write_text
from clearhead.train.forecast import forecast
from clearhead.train.interrupt import Interrupt, Interrupted
from clearhead.train.journal import Display, Journal
from clearhead.train.judges import fitting
from clearhead.train.material import Material, gather
from clearhead.train.model import Model, build
from clearhead.train.monitoring import Monitor
from clearhead.train.processes import Others, is_first
from clearhead.train.report import write_report
from clearhead.train.scores import Example, evaluate, examples, headline, judge_of
from clearhead.train.settings import read_config
from clearhead.train.snapshots import Snapshots, typical
from clearhead.train.starting import folder_of, held
from clearhead.train.task import Task

Say = Callable[[str], None]
FULL = {errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""What the system says where nothing more can be written."""


def train(
    task: str | Config,
    settings: Sequence[str] = (),
    name: str | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    runs: str | Path = "runs",
    say: Say | None = None,
    begun: Callable[[Path], object] | None = None,
) -> Model:
    """Train into the run folder runs/NAME (None: named after the task), and score on the test split.

    task, settings: as for `read_config`, or a Config. say: is told what happens (None: standard error). begun: is
    called with the run's folder once it is there. resume: go on from the newest checkpoint in the folder, with its
    configuration; when the duration is in steps or epochs, the weights become, bit for bit, those of a run that was
    never stopped. overwrite: replace an older run. Raises InputError where `name` is no plain name, RunError when the
    folder cannot be used, and Interrupted, after a checkpoint was saved, on Ctrl-C and SIGTERM.

    With several devices the program is started once more for each of the others; these train along, and end here: what
    comes after `train` runs once.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    config = read_config(task, settings) if isinstance(task, str) else task
    if config.score != "auto":
        judge_of(config.score)  # before anything is made
    run, say = folder_of(runs, config.task if name is None else name), say or _say
    interrupt, others = Interrupt(run), Others(run.path)
    if not is_first():
        with interrupt:
            return _along(run, resume, interrupt, others)
    with interrupt, others, held(run, say, resume), _room(interrupt):
        if resume:
            interrupt.begun = True
            config = _started(run, None if task in TASKS and not settings else config)
        others.check(config)
        material = _gathered(run, config, resume, overwrite, say)
        interrupt.begun = True
        if begun:
            begun(run.path)
        model = _prepared(run, config, material, say)
        others.ready()
        _fit(run, model, material, resume, interrupt)
        _finish(run, model, material, say)
        return model


@contextmanager
def _room(interrupt: Interrupt) -> Iterator[None]:
    """A block in which a full disk ends the run in one line; what is written atomically says so itself."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        path = error.filename or interrupt.folder.path
        raise RunError(f"cannot write {path}: {error.strerror}; {interrupt.how_to_go_on()}") from error


def _gathered(run: RunFolder, config: Config, resume: bool, overwrite: bool, say: Say) -> Material:
    """What is learnt from; with it a new run takes its place, and nothing does where it is refused."""
    if resume:
        return gather(config, say, run)
    with starting.begun(run, overwrite) as new:
        new.write_config(config)
        return gather(config, say, new)


def _prepared(run: RunFolder, config: Config, material: Material, say: Say) -> Model:
    """The model to train, with all that is decided, which is written into the run folder."""
    if (scored := _with_judge(config, material)) != config:
        say(f"judged as {scored.score}: --set score=… says otherwise")
    return _with_decisions(run, _new(scored, material), material.train, say)


def _along(run: RunFolder, resume: bool, interrupt: Interrupt, others: Others) -> NoReturn:
    """Train as one of the processes that are not the first, which has made the folder and all decisions."""
    interrupt.begun = True
    try:
        others.wait()
        config = run.read_config()
        material = gather(config, lambda _: None, run, along=True)
        model = _new(_with_judge(config, material), material)
        processes.begin_random(config.seed)
        _fit(run, model, material, resume, interrupt)
    except Interrupted as error:
        raise SystemExit(error.status) from None
    raise SystemExit(0)


def _with_judge(config: Config, material: Material) -> Config:
    """The configuration with its judge, which `auto` leaves to what the first texts look like."""
    if config.score != "auto":
        return config
    return config.model_copy(update={"score": fitting(islice(material.source.pairs("valid"), 1000))})


def _new(config: Config, material: Material) -> Model:
    """The model to train, initialised from the seed."""
    torch.manual_seed(config.seed)
    source, target = material.source_tokenizer, material.target_tokenizer
    return Model(build(config, source, target), source, target, config)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _started(run: RunFolder, config: Config | None) -> Config:
    """The configuration a run was started with; raises where it is not `config`, or where the run cannot go on."""
    started = run.read_config()
    if run.model.exists():
        raise RunError(f"{run.path} has been trained to its end: train longer under another --name, or --overwrite it")
    if config and config.train.precision == "auto":  # it was decided then
        config = _decided(config, precision=started.train.precision)
    if config and config.score == "auto":
        config = config.model_copy(update={"score": started.score})
    if config and config.train.parts is None:
        config = _decided(config, parts=started.train.parts)
    if config and config != started:
        raise ConfigError(
            f"{run.config} differs from what is asked for, and --resume cannot change it: use another --name"
        )
    for folder in (run.path, run.checkpoints, run.maps):
        checkpoints.clean(folder)
    return started


def _with_decisions(run: RunFolder, model: Model, examples: Examples, say: Say) -> Model:
    """The model with its parts and precision decided, and written into the run folder: a resumed run keeps them."""
    config = model.config
    count = config.train.parts or parts.decide(config, _device())
    config = _decided(config, parts=count)
    if config.train.precision == "auto":
        module = model.module.to(_device())
        with parts.threads(count):
            speeds = precision.measure(module, Batches(examples, config.data.batch_tokens, seed=config.seed))
        best = precision.choose(speeds)
        said = ", ".join(f"{name} {median(found):,.0f}" for name, found in speeds.items())
        unit = "tokens/s" if _device().type == "cuda" else "tokens a second of a core"
        say(f"precision {best}: {said} {unit}; --set train.precision={best} chooses it in other runs")
        config = _decided(config, precision=best)
    with parts.threads(count):
        batches = Batches(examples, config.data.batch_tokens, shuffle=False)
        say(forecast(model.module.to(_device()), batches, config).line(config))
    run.write_config(config)
    return Model(model.module, model.source_tokenizer, model.target_tokenizer, config, run)


def _decided(config: Config, **values: Any) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=values)})


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _fit(run: RunFolder, model: Model, material: Material, resume: bool, interrupt: Interrupt) -> None:
    """Let Lightning train; raises Interrupted when it was stopped by a signal, RunError when a process was lost."""
    settings, checkpoint = model.config.train, checkpoints.newest(run.checkpoints) if resume else None
    valid = Batches(material.valid, 4 * model.config.data.batch_tokens, shuffle=False)
    chosen = _some(examples(material.source, "valid", judge_of(model.config.score)), settings.validation_samples)
    journal = Journal(run)
    evaluation = Evaluation(run, journal, valid, chosen, model)
    task = Task(model.module.train(), material.train, model.config)
    watching = model.config.monitor
    monitors: list[Callback] = [] if watching.every is None else [Monitor(journal, watching)]
    if watching.examples:
        monitors.append(Snapshots(run, model, typical(model, chosen, watching.examples)))
    with _quiet(), parts.threads(settings.parts or 1):
        trainer = Trainer(
            accelerator="gpu" if _device().type == "cuda" else "cpu",
            devices=settings.devices,
            strategy=processes.Processes() if settings.devices > 1 else "auto",
            precision=precision.lightning(settings.precision),
            max_steps=sys.maxsize,  # Evaluation ends it; with no limit Lightning miscounts after some resumes
            accumulate_grad_batches=settings.accumulate,
            plugins=[checkpoints.AtomicCheckpoints()],
            callbacks=[journal, *monitors, evaluation, Display(), interrupt],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        _run(trainer, task, checkpoint, run)
    interrupt.check(trainer.global_step)


def _run(trainer: Trainer, task: Task, checkpoint: Path | None, run: RunFolder) -> None:
    try:
        trainer.fit(task, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as ended:  # what Lightning makes of a KeyboardInterrupt
        raise (ended.__context__ if isinstance(ended.__context__, Interrupted) else ended) from None
    except RuntimeError as error:
        if lost := processes.lost(trainer, error):
            raise RunError(f"{lost}: go on with --resume ({run.path})") from None
        raise


class _quiet(warnings.catch_warnings):
    """Lightning without its advice and its advertisement, and TensorBoard's thread without its last words."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._hook, threading.excepthook = threading.excepthook, self._heard
        return entered

    def __exit__(self, *exception: Any) -> None:
        threading.excepthook = self._hook
        super().__exit__(*exception)

    def _heard(self, ended: Any) -> None:
        """Ignore a full disk: the next write fails by it too."""
        if not (isinstance(ended.exc_value, OSError) and ended.exc_value.errno in FULL):
            self._hook(ended)


def _some(every: Sequence[Example], count: int) -> Sequence[Example]:
    """Every n-th example, so that all of the alphabet is among them where they are in order."""
    step = max(1, len(every) // count)
    return every[: step * count : step]


def _finish(run: RunFolder, model: Model, material: Material, say: Say) -> None:
    """Choose the final weights by validation loss, save them, score them, draw the report."""
    say(_choose_weights(run, model, Batches(material.valid, 4 * model.config.data.batch_tokens, shuffle=False)))
    scores = evaluate(model, say=say)
    write_text(run.scores, json.dumps(scores, indent=2) + "\n")
    write_report(run, model, material.source, scores)
    model.save(run)  # last: a run folder that holds it is complete
    shutil.rmtree(run.tokens, ignore_errors=True)
    say(f"{run.path}: {headline(model.config.score, scores)}")


def _choose_weights(run: RunFolder, model: Model, valid: Batches) -> str:
    """Give the model the best of the last checkpoint, the average of the last, and the best if there is a patience."""
    kept = checkpoints.kept(run.checkpoints)
    recent = kept[-model.config.train.average :]
    candidates = {f"average of the last {len(recent)} checkpoints": recent, "last checkpoint": kept[-1:]}
    if kept[0] not in recent:
        candidates["best checkpoint"] = kept[:1]
    weights = {name: checkpoints.average(paths) for name, paths in candidates.items()}
    losses = {}
    for name, averaged in weights.items():
        model.module.load_state_dict(averaged)
        losses[name] = validation_loss(model.module, valid)
    best = min(losses, key=losses.__getitem__)
    model.module.load_state_dict(weights[best])
    model.module.eval()
    return f"final weights: {best} (" + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()) + ")"
