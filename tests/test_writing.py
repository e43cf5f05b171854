"""Files are there whole, or as they were."""

import os

import pytest

from clearhead.writing import together, write, write_text


def half(file):
    file.write(b"ne")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError])
def test_what_fails_leaves_what_was_there(error, tmp_path):
    write_text(tmp_path / "file", "old")

    def fail(file):
        file.write(b"ne")
        raise error

    with pytest.raises(error):
        write(tmp_path / "file", fail)
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_systems_words_are_kept_where_a_library_hides_them(tmp_path):
    def hiding(file):
        try:
            half(file)
        except OSError:
            raise RuntimeError("unexpected pos 57856 vs 57750")  # noqa: B904 (as torch does)

    with pytest.raises(OSError, match="No space left on device"):
        write(tmp_path / "file", hiding)


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / "link").symlink_to(tmp_path / "thesis")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "thesis").read_text() == "years of work"
    assert (tmp_path / "link").read_text() == "new"


def test_files_that_belong_together_are_replaced_together(tmp_path):
    folder = tmp_path / "out"
    with together(folder) as place:
        (place / "a").write_text("old")
        (place / "b").write_text("old")
        assert os.listdir(folder) == [place.name]
    (tmp_path / "thesis").write_text("years of work")
    (folder / "kept").write_text("of someone else")
    (folder / "c").symlink_to(tmp_path / "thesis")
    with (
        pytest.raises(OSError, match="No space"),
        together(folder, ["a", "b"]) as place,
        open(place / "a", "wb") as file,
    ):
        half(file)
    assert {name: (folder / name).read_text() for name in ("a", "b")} == {"a": "old", "b": "old"}
    with together(folder, ["a", "b"]) as place:
        (place / "b").write_text("new")
        (place / "c").write_text("new")
    assert {file.name: file.read_text() for file in folder.iterdir()} == {
        "b": "new", "c": "new", "kept": "of someone else"
    }  # fmt: skip
    assert (tmp_path / "thesis").read_text() == "years of work"
    with pytest.raises(KeyboardInterrupt), together(tmp_path / "none"):
        raise KeyboardInterrupt
    assert not (tmp_path / "none").exists()
