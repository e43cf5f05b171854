"""Train the recipes of configs/ as users do, and print what they reached beside what is published.

    python bench/recipes.py [RECIPE ...] [--data FOLDER] [--minutes M] [--runs FOLDER] [--json]

FOLDER holds multi30k/{train,val}.{en,de}.gz; without it only recipes run whose data is built in. A
recipe that was interrupted goes on where it stopped; one that has ended is not trained again.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clearhead.train import evaluate, load, read_config, train
from clearhead.train.folder import RunFolder

CONFIGS = Path(__file__).parent.parent / "configs"


@dataclass(frozen=True)
class Recipe:
    """A configuration, the figure it is judged by, what is published, and the files it needs below --data."""

    name: str
    figure: str
    unit: float
    published: str
    files: tuple[tuple[str, str], ...] = ()

    def settings(self, data: Path | None) -> list[str]:
        """Where its files are."""
        return [
            f"data.{split}={json.dumps(','.join(str(data / name) for name in names.split(',')))}"
            for split, names in self.files
            if data is not None
        ]


RECIPES = (
    Recipe("g2p-full", "wer_without_stress", 100, "30.2 % (cmusphinx/g2p-seq2seq, another split)"),
    Recipe(
        "multi30k-tiny",
        "bleu_lowercase",
        1,
        "41.02 on test 2016 (Revisit-MMT, Transformer-Tiny); here on the validation set",
        (
            ("train", "multi30k/train.en.gz,multi30k/train.de.gz"),
            ("valid", "multi30k/val.en.gz,multi30k/val.de.gz"),
        ),
    ),
)


def run(recipe: Recipe, data: Path | None, runs: Path, minutes: float | None) -> dict[str, Any]:
    """Train a recipe, or go on with it, and read what it reached."""
    folder = RunFolder(runs / recipe.name)
    settings = recipe.settings(data) + ([] if minutes is None else [f"train.duration={minutes} minutes"])
    if not folder.model.exists():
        config = read_config(str(CONFIGS / f"{recipe.name}.yaml"), settings)
        train(config, name=recipe.name, runs=runs, resume=folder.config.exists())
    scores = (
        json.loads(folder.scores.read_text(encoding="utf-8")) if folder.scores.exists() else evaluate(load(folder.path))
    )
    seconds = max(record["seconds"] for record in folder.read_metrics())
    return {"recipe": recipe.name, "figure": recipe.figure, "reached": recipe.unit * scores[recipe.figure],
            "split": scores["split"], "published": recipe.published, "minutes": seconds / 60}  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"{'recipe':<14}  {'figure':<20}  {'reached':>7}  {'split':<5}  {'minutes':>7}  published"]
    for row in rows:
        figures = f"{row['reached']:>7.2f}  {row['split']:<5}  {row['minutes']:>7.1f}"
        lines.append(f"{row['recipe']:<14}  {row['figure']:<20}  {figures}  {row['published']}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the recipes, and print what they reached.")
    parser.add_argument("recipes", nargs="*", help="some of them: " + ", ".join(recipe.name for recipe in RECIPES))
    parser.add_argument("--data", type=Path, help="the folder that holds multi30k/")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders go")
    parser.add_argument("--minutes", type=float, help="instead of each recipe's own time")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    known = {recipe.name: recipe for recipe in RECIPES}
    if unknown := [name for name in asked.recipes if name not in known]:
        parser.error(f"unknown recipe {unknown[0]!r} (known: {', '.join(known)})")
    chosen = [known[name] for name in asked.recipes] or [r for r in RECIPES if asked.data or not r.files]
    if needing := [recipe.name for recipe in chosen if recipe.files and asked.data is None]:
        parser.error(f"{needing[0]} needs --data FOLDER")
    rows = [run(recipe, asked.data, asked.runs, asked.minutes) for recipe in chosen]
    print(json.dumps(rows) if asked.json else "\n".join(table(rows)))


if __name__ == "__main__":
    main()
