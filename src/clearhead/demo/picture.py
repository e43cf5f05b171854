"""The picture of the story: loss, entropy and logits of every head, with the alarm marked.

S steps, n heads
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from clearhead.demo.story import Collapse
from clearhead.demo.training import Run
from clearhead.observe.health.rules import LogitExplosion
from clearhead.picture.sheet import Sheet
from clearhead.picture.ticks import INK, MUTED

WIDE, HIGH = 6.6, 1.9  # inches of a panel
LEFT, TOP, GAP = 0.95, 0.95, 0.5
COLORS = {"healthy": "#009e73", "collapsing": "#d55e00", "rescued": "#0072b2"}
OTHERS = "#c9c8d1"
WARNED = "#fff4e5"  # between the alarm and the loss
SMOOTH = 10  # steps that a point of a loss is the mean of
THRESHOLD = LogitExplosion().threshold


def picture(story: Collapse) -> Figure:
    """Three panels over the same steps."""
    sheet = Sheet(LEFT + WIDE + 1.35, TOP + 3 * (HIGH + GAP) + 0.25)
    sheet.head(f"{_headline(story)}\n{_settings(story)}")
    loss, entropy, logit = (sheet.panel(LEFT, TOP + i * (HIGH + GAP), WIDE, HIGH) for i in range(3))
    _loss(loss, story)
    _heads(entropy, story, "normalized_entropy", "lowest")
    _heads(logit, story, "max_logit", "highest")
    logit.set_yscale("log", nonpositive="mask")
    logit.axhline(THRESHOLD, color=MUTED, linewidth=0.6, linestyle=(0, (4, 3)))
    _beside(logit, THRESHOLD, f"alarm above {THRESHOLD:g}", MUTED)
    titles = (
        f"training loss, nats (means of {SMOOTH} steps)",
        "normalized entropy of each head",
        "largest logit of each head",
    )
    for axes, title in zip((loss, entropy, logit), titles, strict=True):
        axes.set_title(title, loc="left", fontsize=9, color=INK)
        axes.set_xlim(0, story.steps)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _mark(axes, story, worded=axes is loss)
    entropy.yaxis.set_major_locator(MaxNLocator(4))
    loss.yaxis.set_major_locator(MaxNLocator(4))
    logit.set_xlabel("step", fontsize=9, color=MUTED)
    return sheet


def _headline(story: Collapse) -> str:
    """What there is to see, in the words of what happened."""
    if story.alarm is None or story.untrue:
        return "Attention under a learning rate far too high: the story did not happen as told"
    return (
        f"The alarm names the head at step {story.alarm['step']}, the loss rises at step {story.loss_speaks}; "
        "with the remedy the run goes on learning"
    )


def _settings(story: Collapse) -> str:
    run = story.collapsing
    return f"(collapsing and rescued: learning rate {run.learning_rate:g} without warm-up; seed {story.seed})"


def _loss(axes: Axes, story: Collapse) -> None:
    """Means of a few steps, and faintly each step."""
    for run in story.runs:
        losses = np.array(run.losses)
        steps = np.arange(1, len(losses) + 1)
        axes.plot(steps, losses, color=COLORS[run.name], linewidth=0.4, alpha=0.35)
        if len(losses) >= SMOOTH:
            means = np.convolve(losses, np.full(SMOOTH, 1 / SMOOTH), "valid")
            axes.plot(steps[SMOOTH - 1 :], means, color=COLORS[run.name], linewidth=1.6)
    finite = np.concatenate([[loss for loss in run.losses if np.isfinite(loss)] for run in story.runs])
    axes.set_ylim(float(finite.min()) - 0.1, float(np.quantile(finite, 0.985)))
    ends = {run.name: float(np.mean(run.losses[-SMOOTH:])) for run in story.runs}
    for name, at in _apart(ends, *axes.get_ylim()).items():
        _beside(axes, at, name, COLORS[name])


def _heads(axes: Axes, story: Collapse, statistic: str, end: str) -> None:
    """Every head of the collapsing run, the one that the alarm named in colour; of the others their extreme head."""
    named = None if story.alarm is None else (story.alarm["layer"], story.alarm["head"])
    for head, values in story.collapsing.heads(statistic).items():
        color, width = (COLORS["collapsing"], 1.6) if head == named else (OTHERS, 0.7)
        axes.plot(_steps(story.collapsing), values, color=color, linewidth=width, zorder=3 if head == named else 2)
    extreme = np.fmin if end == "lowest" else np.fmax
    for run in (story.healthy, story.rescued):
        worst = extreme.reduce(list(run.heads(statistic).values()))
        axes.plot(_steps(run), worst, color=COLORS[run.name], linewidth=1.2, linestyle="--", zorder=4)
    if end == "lowest":
        _explain(axes, named is not None)


def _explain(axes: Axes, alarmed: bool) -> None:
    """What the lines of both panels below the loss are."""
    handles = [Line2D([], [], color=COLORS["collapsing"], label="collapsing:\nalarmed head")] if alarmed else []
    handles.append(Line2D([], [], color=OTHERS, label="collapsing:\nother heads"))
    for name in ("healthy", "rescued"):
        handles.append(Line2D([], [], color=COLORS[name], linestyle="--", label=f"{name}:\nworst head"))
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.03), "frameon": False}
    axes.legend(handles=handles, fontsize=7.5, labelcolor=INK, handlelength=1.4, **place)


def _mark(axes: Axes, story: Collapse, worded: bool) -> None:
    """Where the alarm was raised, and where the loss rose."""
    alarm = story.alarm["step"] if story.alarm else None
    if alarm is not None and story.loss_speaks is not None and alarm < story.loss_speaks:
        axes.axvspan(alarm, story.loss_speaks, color=WARNED, linewidth=0, zorder=0)
    named = "alarm, and the remedy" if story.rescued.remedies else "alarm"
    for step, words, line in ((alarm, named, "-"), (story.loss_speaks, "the loss rises", ":")):
        if step is None:
            continue
        axes.axvline(step, color=INK, linewidth=0.8, linestyle=line)
        if worded:
            put: dict[str, Any] = {"xytext": (3, -3), "textcoords": "offset points", "va": "top"}
            axes.annotate(f"{words}: step {step}", (step, 1), xycoords=("data", "axes fraction"), fontsize=8, **put)


def _steps(run: Run) -> list[int]:
    return [record["step"] for record in run.records]


def _beside(axes: Axes, at: float, words: str, color: str) -> None:
    put: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
    axes.annotate(words, (1, at), xycoords=("axes fraction", "data"), fontsize=8, color=color, **put)


def _apart(places: dict[str, float], low: float, high: float) -> dict[str, float]:
    """The places of names, moved until they do not touch."""
    least, out, last = 0.09 * (high - low), {}, -np.inf
    for name in sorted(places, key=lambda name: places[name]):
        last = max(places[name] if np.isfinite(places[name]) else high, last + least)
        out[name] = float(min(last, high))
    return out
