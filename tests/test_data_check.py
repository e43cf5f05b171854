"""`clearhead data check`: every kind of thing that files can hold is found, with its place."""

import gzip
import json

import pytest

from clearhead.cli import main
from clearhead.data import Files, survey
from clearhead.train import survey as train_survey

CLEAN = [
    (f"dog number {word} runs home", f"Hund {word} läuft heim") for word in ("one", "two", "three", "four", "five")
]


def written(path, rows):
    path.write_bytes(b"".join("\t".join(row).encode() + b"\n" if isinstance(row, tuple) else row for row in rows))
    return str(path)


def looked_at(tmp_path, rows, limit=None, **others):
    files = {"train": [written(tmp_path / "train.tsv", rows)]}
    files |= {split: [written(tmp_path / f"{split}.tsv", other)] for split, other in others.items()}
    return survey(Files(files), limit)


def places(findings):
    """The line and the count of each kind."""
    return {one.kind: (one.count, [example.split(".tsv:")[-1] for example in one.examples]) for one in findings}


def test_counts_and_lengths(tmp_path):
    (found,) = looked_at(tmp_path, CLEAN)
    sizes = sorted(len(source) for source, _ in CLEAN)
    assert found.pairs == 5
    assert (found.characters["source"].median, found.characters["source"].longest) == (sizes[2], sizes[-1])
    assert (found.words["source"].median, found.words["target"].longest) == (5, 4)
    assert found.alphabet["source"] == len(set("".join(source for source, _ in CLEAN)))
    assert not found.refused


MIXED = "6: p U+0070 LATIN SMALL LETTER P next to а U+0430 CYRILLIC SMALL LETTER A"


@pytest.mark.parametrize(
    ("row", "kind", "example"),
    [
        (("bell\x07 rings", "Glocke läutet"), "control characters", "6: U+0007 without a name"),
        (("was \ufffd there", "war da"), "replacement characters", "6: \ufffd U+FFFD REPLACEMENT CHARACTER"),
        (("a\u00a0dog", "ein Hund"), "unusual spaces", "6: U+00A0 NO-BREAK SPACE"),
        (("a pаypal bill", "Rechnung"), "words of mixed scripts", MIXED),
        (("dog " * 12, "Hund"), "pairs of unusual lengths for each other", "6: 48 and 4 characters"),
        (CLEAN[2], "pairs that stood there before", "6"),
    ],
)  # fmt: skip
def test_what_is_noted(row, kind, example, tmp_path):
    (found,) = looked_at(tmp_path, [*CLEAN, row])
    assert not found.refused
    assert places(found.noted)[kind] == (1, [example])
    (clean,) = looked_at(tmp_path, CLEAN)
    assert kind not in places(clean.noted)


def test_scripts_may_stand_side_by_side(tmp_path):
    (found,) = looked_at(tmp_path, [*CLEAN, ("Moscow Москва αβγ", "東京タワーへ行く 👩‍👧")])
    assert not {"words of mixed scripts", "control characters"} & places(found.noted).keys()


def test_a_character_that_is_there_once_is_found(tmp_path):
    (found,) = looked_at(tmp_path, [*CLEAN, *CLEAN, ("dog ñ runs", "Hund läuft")])
    kinds = places(found.noted)
    assert kinds["characters that sources hold once"] == (1, ["11: ñ U+00F1 LATIN SMALL LETTER N WITH TILDE"])


def test_all_that_is_refused_is_listed_and_the_rest_is_counted(tmp_path):
    rows = [CLEAN[0], b"\n", ("a", "b", "c"), b"\xe9\tx\n", CLEAN[1], ("x", " "), b"\n", ("long " * 9, "kurz")]
    (found,) = looked_at(tmp_path, rows, limit=8)
    refused = places(found.refused)
    assert refused["empty lines"][0] == 3
    assert refused["lines with another number of columns"] == (1, ["3: 3 columns, not 2"])
    assert refused["lines that are not UTF-8"][1][0].startswith("4: not UTF-8 (byte 0xE9)")
    assert refused["sources of more words than the model reads tokens (8)"] == (1, ["8: 9 words"])
    assert found.pairs == 3


def test_what_training_refuses_for_its_tokens_is_refused(tmp_path):
    """Few words of many tokens, and symbols that train has not: both are known when vocabularies are made."""
    train = written(tmp_path / "train.tsv", CLEAN * 9)
    valid = written(tmp_path / "valid.tsv", [CLEAN[0], ("Ü" * 40, "x"), ("dog", "Hund"), ("dog", "Ü" * 40)])
    small = ["model.max_length=30", "data.tokenizer.size=300"]

    def refused(*settings):
        found = train_survey([train, valid], [*small, *settings])
        return places(found[0].refused), places(found[1].refused)

    advice = "shorten it, raise model.max_length, or set data.truncate=true"
    assert refused() == (
        {},
        {
            "sources of more tokens than the model reads (30)": (
                1,
                [f"2: the source has 80 tokens, the model reads 30: {advice}"],
            ),
            "targets of more tokens than the model reads (30)": (
                1,
                [f"4: the target has 80 tokens, the model reads 29: {advice}"],
            ),
        },
    )
    assert refused("data.truncate=true") == ({}, {})
    unknown = refused("data.truncate=true", "data.target_tokenizer=symbols")[1]["targets of unknown symbols"]
    assert unknown[0] == 2
    assert unknown[1][0].startswith("2: the target has an unknown symbol 'x' (known: Hund, five")


def test_a_survey_outlives_a_file_that_is_damaged_in_its_middle(tmp_path, monkeypatch):
    monkeypatch.setattr("clearhead.data.lines._CHUNK", 100)
    train = written(tmp_path / "train.tsv", CLEAN)
    (tmp_path / "valid.tsv.gz").write_bytes(gzip.compress(b"dog number one runs home\tx\n" * 99, mtime=0)[:-9])
    _, found = survey(Files({"train": [train], "valid": [str(tmp_path / "valid.tsv.gz")]}))
    assert [one.kind for one in found.refused] == ["files that training cannot use"]
    assert "100.0% of its sources are in train too" in [one.kind for one in found.noted]


def test_what_is_in_train_too(tmp_path):
    test = [CLEAN[1], (CLEAN[2][0], "etwas anderes"), ("something else", "neu"), ("and more", "mehr")]
    _, found = looked_at(tmp_path, CLEAN, test=test)
    kinds = places(found.noted)
    assert kinds["25.0% of its pairs are in train too"] == (1, ["1"])
    assert kinds["50.0% of its sources are in train too"] == (2, ["1", "2"])


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "a.tsv", CLEAN)
    written(tmp_path / "b.tsv", [*CLEAN, ("x", "y", "z")])

    def command(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["data", "check", *arguments])
        return ended.value.code, capsys.readouterr().out

    status, output = command("a.tsv")
    assert status == 0
    assert output.startswith("train: a.tsv\n  5 pairs\n")
    assert output.endswith("  nothing that training refuses\n")
    status, output = command("b.tsv", "a.tsv")
    assert status == 2
    assert "refused: lines with another number of columns: 1\n    b.tsv:6: 3 columns, not 2\n" in output
    status, output = command("b.tsv", "a.tsv", "--json")
    train, valid = json.loads(output)
    assert status == 2
    assert (train["pairs"], valid["split"], valid["noted"][-1]["count"]) == (5, "valid", 5)
    assert train["characters"]["source"]["longest"] == max(len(source) for source, _ in CLEAN)
    assert command("none.tsv")[0] == 2
    assert command("a.tsv", "--set", "data.source_column=2", "--set", "data.target_column=1")[0] == 0
    assert command("a.tsv", "a.tsv", "a.tsv", "a.tsv")[0] == 2
