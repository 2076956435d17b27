r"""Fine-tune a pretrained backbone of transformers with a head, or its last MLPs, of experts.

To see that it runs, on a backbone with random weights and Fashion-MNIST::

    python -m recipes.head --out results/head

A sentence encoder on labelled lines (a label, a tab, a text); DINOv2 or CLIP on a folder of images for each class::

    python -m recipes.head --backbone all-MiniLM-L6-v2 --data lines.tsv --experts 64 --out results/lines
    accelerate launch -m recipes.head --backbone dinov2-small --data photographs --augment --out results/dino

The uMoE paper's CLIP B/32 on ImageNet, all of it trained at one rate::

    accelerate launch -m recipes.head --backbone clip-vit-base-patch32 --data imagenet --experts 64 --batch 4096 \
        --learning-rate 3e-5 --backbone-rate 3e-5 --steps 3130 --warm-up 0.16 --augment --workers 12 --out results/clip
"""

from __future__ import annotations

import sys

from recipes.command import run
from recipes.head.backbones import HeadOptions
from recipes.head.fine_tuning import head

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(run(HeadOptions, head, __doc__))
