r"""Train a GPT-2 with experts in every MLP.

On a laptop, on the text of Python's standard library, which is prepared at the first call; some minutes on 2 cores::

    python -m recipes.gpt --out results/gpt

The same with dense MLPs of as many parameters, and in two processes::

    python -m recipes.gpt --form dense --out results/gpt-dense
    torchrun --nproc-per-node 2 -m recipes.gpt --cpu --out results/gpt-two

The uMoE paper's sizes (124 million parameters, 256 experts), on shards of your own::

    accelerate launch -m recipes.gpt --data shards --depth 12 --tokens 1024 --batch 960 --accumulate 10 --experts 256 \
        --gate-norm layer --steps 100000 --warm-up 0.02 --precision bfloat16 --out results/gpt-124m
"""

from __future__ import annotations

import sys

from recipes.command import run
from recipes.gpt.language import GPTOptions, gpt

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(run(GPTOptions, gpt, __doc__))
