"""The page of the families: two tables, made from the trials."""

from __future__ import annotations

from collections.abc import Sequence

from studies.model_families.trial import Trial

__all__ = ["page"]

TEMPLATE = """\
# Model families

Which classes of transformers can be changed, saved, loaded and run. Each was tried with a tiny random model of its own
code.

- **{dense_works} of {dense} dense families** have MLPs that [`replace`](../how-to/pretrained-models.md) takes.
- **{sparse_works} of {sparse} sparse mixtures** have experts that
  [`factorize_experts`](../how-to/from-a-trained-moe.md) takes.
- The others are refused with the reason below, and are left as they were.

A family that works does all of this:

- changed at full rank, it computes what it did: the *difference* is that of all outputs, relative, in float32;
- gradients reach what was put in;
- after a change of all its parameters, `save` and `load` give a model of the same outputs, to the bit, and so do
  `model.save_pretrained` and `Class.from_pretrained` of transformers;
- where the class generates text, all of these models generate the same.

## Dense models

{dense_table}

## Sparse mixtures

{sparse_table}

## Refused

{refused}

Linear layers are replaced by their paths, and a layout of your own is
[one line](../how-to/pretrained-models.md#other-families-of-mlps).

## How it was made

Written by `python -m studies model_families` from [model-families.json](model-families.json): do not edit. The code is
in `studies/model_families`. MLPs were replaced by CP tensors of two experts, experts by tensor trains, both of full
rank. With {versions}.

What this does not show: that a large trained model keeps its quality at a smaller rank, or that other versions of
transformers have the same code.
"""


def page(dense: Sequence[Trial], sparse: Sequence[Trial], versions: str) -> str:
    """The page as Markdown.

    Args:
        dense: The trials of dense families.
        sparse: Those of sparse mixtures.
        versions: What they were made with.
    """
    kinds = {"dense": dense, "sparse": sparse}
    counts = {name: len(trials) for name, trials in kinds.items()}
    works = {f"{name}_works": sum(_works(trial) for trial in trials) for name, trials in kinds.items()}
    tables = {f"{name}_table": _table(trials) for name, trials in kinds.items()}
    refused = "\n".join(
        f"- `{trial.name}`: {trial.failed or trial.refused}" for trial in (*dense, *sparse) if not _works(trial)
    )
    return TEMPLATE.format(**counts, **works, **tables, refused=refused, versions=versions)


def _works(trial: Trial) -> bool:
    return not trial.refused and not trial.failed


def _table(trials: Sequence[Trial]) -> str:
    rows = ["| class | takes | changed | difference | generates |", "|---|---|---:|---:|---|"]
    for trial in trials:
        if _works(trial):
            difference = f"{trial.difference:.0e}" if trial.difference else "0"
            generates = "yes" if trial.generates else "-"
            rows.append(f"| `{trial.name}` | {trial.takes} | {trial.changed} | {difference} | {generates} |")
    return "\n".join(rows)
