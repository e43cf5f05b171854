"""A test of the tests: mistakes planted in how work is grouped, in a tail and in a merge turn the laws red."""

import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from at_cuts import KERNELS, cases, hold, keep_the_laws
from clearhead.kernels import blocks, compiler, fused

SOURCES = compiler.parts(Path(fused.__file__).with_name("fused.c"))


def heads_of_the_first(tiles, b, h):
    """As it once was: tiles that begin with the same head were thought to hold the same heads."""
    first = {}
    alike = [replace(tile, h=first.setdefault(tile.h.start, tile.h)) for tile in tiles]
    return _parts(alike, b, h)


_parts = fused._parts


def test_a_mistake_in_how_tiles_are_grouped_is_loud():
    with patch.object(fused, "_parts", heads_of_the_first), pytest.raises(RuntimeError, match="a bug of Clearhead"):
        hold("compiled")


def test_a_mistake_in_how_tiles_are_grouped_breaks_a_law():
    """Also where nobody counts: what was never written is NaN."""
    uncounted = patch.object(fused, "_counted", lambda rows, tiles: None)
    with uncounted, patch.object(fused, "_parts", heads_of_the_first), pytest.raises(AssertionError):
        hold("compiled")


@contextmanager
def planted(folder, file, right, wrong):
    """Within it the compiled pass is made of sources in which what is `right` is `wrong`."""
    for source in SOURCES:
        shutil.copy(source, folder)
    text = Path(folder, file).read_text()
    assert text.count(right) == 1
    Path(folder, file).write_text(text.replace(right, wrong))
    with patch.object(compiler, "_folder", lambda: Path(folder)), patch.object(compiler, "_FLAGS", QUICK):
        library = fused.opened(Path(folder, "fused.c"))
    assert not isinstance(library, str), library
    with patch.object(fused, "_library", lambda: library):
        yield


QUICK = tuple("-O1" if flag == "-O3" else flag for flag in compiler._FLAGS)
CHUNK = "        m = lesser(CHUNK, c->keys - start);\n        if (!c->gemm) pack_chunk"
MISTAKES = {
    "a tail of one key is left out": (
        "forward.h",
        "start < c->keys; start += m) {\n" + CHUNK,
        "start + 1 < c->keys; start += m) {\n" + CHUNK,
    ),
    "a tail of rows has no gradient": (
        "backward.h",
        "head_back(c, to, 0, h, r, some,",
        "if (some == n) head_back(c, to, 0, h, r, some,",
    ),
    "chunks are merged without the entropy of the first": (
        "forward.h",
        "row->dot = change > -87 ? f * (row->dot + change * row->total) : 0;",
        "row->dot = 0;",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_compiled_pass_breaks_a_law(mistake, tmp_path):
    with planted(tmp_path, *MISTAKES[mistake]), pytest.raises(AssertionError):
        hold("compiled")


def test_without_a_mistake_the_copy_keeps_the_laws(tmp_path):
    with planted(tmp_path, "fused.c", "near = NEAR;", "near = NEAR; "):
        kernel = KERNELS["compiled"]()
        for problem in cases(kernel, 2):
            keep_the_laws(problem, kernel)


def merged_without_shares(band, found, blind, out, lse):
    """The outputs of two runs added without the share of each."""
    if band.first:
        _merge(band, found, blind, out, lse)
    else:
        band.queries(out).add_(found[0])


_merge = blocks._merge


def test_a_mistake_in_how_runs_are_merged_breaks_a_law():
    with patch.object(blocks, "_merge", merged_without_shares), pytest.raises(AssertionError):
        hold("blocks")
