"""`watch` and attn_implementation="clearhead" over every architecture of transformers that can be built small.

Each is run with random weights, in evaluation mode and in those ways to attend that it has. Eager weights are the
oracle: outputs are the same to the bit, what was seen has the weights of eager attention, and what attended and was
not seen is listed. Which ones are seen in part, refused, or cannot be run is written in `architectures`.
"""

import pytest

import architectures as known
import small_models
from conftest import TRIALS
from small_models import why_not
from swept import Report, scored, swept, trained

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread", "quiet")]
NOT_RUN = {kind: reason for reason, kinds in known.NOT_RUN.items() for kind in kinds}
RUN = [kind for kind in small_models.kinds() if kind not in NOT_RUN]
FEW = ["bert", "llama", "t5", "vit", "big_bird", "hrm_text", "clip"]
LONG = RUN if TRIALS else FEW


@pytest.fixture(scope="module")
def quiet():
    """Transformers speaks about each model."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(level)


def level(kind: str) -> str:
    """How much of its attention is to be seen."""
    lists = {"no attention": known.NO_ATTENTION, "partly seen": known.PARTLY, "listed": known.LISTED}
    return next((name for name, kinds in lists.items() if kind in kinds), "seen")


def attends(kind: str) -> str:
    """Who is to attend under attn_implementation="clearhead"."""
    lists = {
        "refused": known.REFUSED,
        "no such name": known.UNKNOWN_NAME,
        "the model itself": [*known.OWN, *known.NO_ATTENTION],
        "partly clearhead": known.BOTH,
    }
    return next((name for name, kinds in lists.items() if kind in kinds), "clearhead")


def hold(report: Report) -> None:
    assert not report.problems, "\n".join(report.problems)
    assert report.level == level(report.kind), report.unseen
    assert report.clearhead == attends(report.kind)


@pytest.mark.parametrize("kind", RUN)
def test_what_is_seen_is_what_ran(kind):
    hold(swept(kind))


@pytest.mark.trial
@pytest.mark.parametrize("kind", LONG)
def test_every_way_to_attend_is_seen(kind):
    hold(swept(kind, every_way=True))


@pytest.mark.trial
@pytest.mark.parametrize("checkpointing", [False, True], ids=["whole", "checkpointed"])
@pytest.mark.parametrize("kind", [kind for kind in LONG if kind not in known.RANDOM])
def test_a_watched_step_of_training_is_the_unwatched_one(kind, checkpointing):
    assert not trained(kind, checkpointing)


@pytest.mark.trial
@pytest.mark.parametrize("kind", LONG)
def test_every_head_that_is_seen_has_an_importance(kind):
    assert not scored(kind)


@pytest.mark.trial
@pytest.mark.parametrize("kind", NOT_RUN if TRIALS else [*NOT_RUN][::16])
def test_what_is_not_run_cannot_be_for_the_reason_that_is_given(kind):
    assert why_not(kind) == NOT_RUN[kind]


def test_every_architecture_is_run_or_listed():
    assert len(RUN) >= 200
    assert not {*NOT_RUN} - {*small_models.kinds()}
    assert len(NOT_RUN) == sum(map(len, known.NOT_RUN.values()))
    for kinds in (known.NO_ATTENTION, known.PARTLY, known.LISTED, known.REFUSED, known.UNKNOWN_NAME, known.OWN):
        assert not {*kinds} - {*RUN}
