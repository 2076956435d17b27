"""Training programs to be read from top to bottom: a GPT, a fine-tuned backbone, an MLP-Mixer, with experts or dense.

All three share one loop, `recipes.train.train`. Each is run by its name, in one process or in several::

    python -m recipes.gpt --help
    torchrun --nproc-per-node 2 -m recipes.gpt --data results/text
    accelerate launch -m recipes.mixer
"""
