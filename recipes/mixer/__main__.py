r"""Train an MLP-Mixer with experts in both MLPs of every block.

On a laptop, on Fashion-MNIST (Debian's dataset-fashion-mnist) or a folder of images for each class::

    python -m recipes.mixer --out results/mixer
    python -m recipes.mixer --data photographs --side 64 --patch 8 --depth 3 --augment --out results/photographs

The uMoE paper's Mixer-S/16 on ImageNet, 300 epochs::

    accelerate launch -m recipes.mixer --data imagenet --depth 8 --side 224 --patch 16 --experts 64 --batch 4096 \
        --augment --stochastic-depth 0.1 --steps 93750 --warm-up 0.107 --precision bfloat16 --workers 12 \
        --out results/mixer-s16
"""

from __future__ import annotations

import sys

from recipes.command import run
from recipes.mixer.mixing import MixerOptions, mixer

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(run(MixerOptions, mixer, __doc__))
