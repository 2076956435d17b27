"""What the page says that no run decides: its words, its rules and its limits."""

from __future__ import annotations

__all__ = ["CAPTIONS", "DONE", "LIMITS", "OPENING", "RULES_OF", "WORDS"]

OPENING = """\
Do more experts make more special ones, as the paper has it? Heads of 4 to 1,024 experts were trained on *glosses*
(definitions of nouns, in 252, 50 or 10 classes), *glyphs* (pictures of 256 kanji) and Fashion-MNIST (10 classes).
Each expert was then taken out, and the test samples that are lost without it were counted by class.

"""

WORDS = """\
## Words

- *The paper*: Oldfield et al. 2024 (arXiv 2402.12550), with heads for ImageNet. *This library*: `factorized_moe`.
- **N** experts, **C** classes, **n** seeds; `glosses 50` are the glosses in 50 classes. A *gate* gives each expert a
  coefficient for an input: *softmax* above 0 for all, *entmax* (alpha 1.5) 0 for most. *CP* and *TR*: the experts'
  matrices as one tensor in canonical polyadic or tensor-ring form.
- **d** of an expert: the share of each class's correctly predicted test samples that is lost without it, 0 for a class
  that gains. An expert is *without effect* if no class loses a single sample; there is no other threshold.
- **p**, *polysemanticity*: `p = |d - e|`, a Euclidean length, with `e` 1 at the largest entry of `d` and 0 elsewhere.
  It is 0 for an expert that all of one class is lost without, about 1 where little is lost, more where much is lost of
  several classes; for a head the mean over its experts.
- *Experts without effect* are *left out* of that mean, *counted 1*, as the formula has it, or *counted 0*, as if
  perfect. What the paper does is not known. This page's rule is to leave them out, as the library does and as was set
  beforehand: without an effect there is no class to be special for. The other two stand beside it.
- *Concentration*: the largest entry of `d` over its sum. *Classes* by expert: `exp` of the entropy of `d` over its sum.
- *Bits*: the mutual information of a test sample's class and an expert drawn by the sample's coefficients. They are at
  most log2 N and log2 C, a bound that grows with N as long as N is below C.
- *Null*: the same figure where chance decides which samples an expert loses, as many as it does; for bits, which class
  a sample has. *Excess*: a figure less its null. Nulls move with N: one or two lost samples look like one class by
  chance too, so where experts lose few, `p`, concentration and classes cannot be far from their nulls.
- `±` is one standard error of a mean over pairs of the same seed. Within two of them is *a tie*; beyond, a figure
  *rises* or *falls*, is *more* or *less*, and is bold in tables.

"""

RULES_OF = {
    "polysemanticity": "By how much `p` moves over a span of N, and by how much its *excess*, that is, beyond the "
    "null's own move; over *all experts* the excess is the same, counted 1 or 0. The paper's claim is reproduced where "
    "all five are bold and below 0 up to half of the classes. Blank: fewer than two numbers of experts.",
    "beyond_nulls": "By how much the excess moves, positive for more special. Classes by expert are compared in "
    "numbers and as a share of their null, since on most data the null itself shrinks many times over.",
    "entmax": "Entmax's `p`, and its excess, less softmax's; a pair is entmax : softmax, *lost by each* for an expert "
    "with an effect. *From 64 experts on*, because earlier runs on glosses and glyphs had entmax lower with 64 and 256 "
    "experts, and higher or a tie with 16. *Vacuous*: with fewer than two samples lost by an expert with an effect, "
    "`p` is little but its null.",
    "accuracy": "Accuracies are fractions. Pairs of the same seed; within two standard errors is a tie.",
    "forms": "Experts without effect are left out. At rank 128 parameters grow with N, so above both grow together; at "
    "*equal parameters*, those of a linear head, N alone does. The paper's init and TR were run with 16 and 256 "
    "experts only, so these rows, and those of CP beside them, cross the border of half of the classes.",
}

CAPTIONS = {
    "polysemanticity.svg": "Polysemanticity against experts by class: mean and range of the seeds; dashed: null. "
    "Experts without effect are left out.",
    "measures.svg": "Three other measures: mean and range of the seeds; dashed: their nulls, which move too.",
    "gates.svg": "Polysemanticity with entmax and softmax under three rules for experts without effect: mean and range "
    "of the seeds; dashed: null. Where a line lies on its null, nothing can be told.",
    "accuracy.svg": "Accuracy less that of a linear head, with two standard errors; red is worse, grey a tie. CP "
    "of rank 128 and two linear maps have other numbers of parameters than the linear head.",
    "glyphs.png": "Glyphs: experts drawn at random, and for each twelve test pictures drawn at random among those "
    "whose largest coefficient is the expert's (CP, entmax, seed 0).",
    "glosses.svg": "The same for glosses, by their nouns; a colour is a class of its row, grey is a class that the row "
    "has once.",
}

DONE = """\
## How it was done

- *Glosses*: of WordNet 3.0's nouns (its own free licence), sorted by 252 concepts far above them, 75 for training and
  25 for the test of each; embeddings of a frozen MiniLM. 50 and 10 classes are k-means of these 252, on the same
  inputs; with *every gloss for training*, up to 2,300 of a class, the test is the same.
- *Glyphs*: 256 kanji in 40 faces of Debian, 20 for training and 20 for the test of each; features of a frozen
  PP-OCRv4 reader, 192 principal directions. No kanji is tested in a face it was trained in. *Fashion-MNIST*: a small
  network is trained together with the head.
- CP of rank 128 with the library's defaults and entmax where nothing else is said. TR has the parameters of that CP.
  *Equal parameters*: those of a linear head, the gate counted. *Two linear maps*: a linear head in two factors with
  the parameters of CP with 256 experts.
- AdamW, weight decay 0.01, batches of 256, 5% warm-up, half a cosine. Glosses 8 epochs (every gloss 3), glyphs 30,
  Fashion-MNIST 2. Nulls: ten draws of lost samples; three shuffles of labels.
- The measure is this library's form of the paper's; that the two are the same to the letter is not confirmed. The
  paper's range is 16 to 512 experts for ImageNet's 1,000 classes.
- Learning rates: the best of 0.001, 0.003 and 0.01 on held-out training samples, for every contender, with 16 experts
  and one seed; 10 and 50 classes and every gloss take those of 252. With an asterisk where at the edge of the three:
"""

LIMITS = """\
## How far to trust it

- A rate chosen with 16 experts serves every N, so part of a trend over N may be that other numbers of experts want
  another rate. Entmax and softmax have different ones on glosses. Rates at the edge and a weight decay that was not
  tuned mean that nobody is compared at their best.
- One design was run. Training was shortened once for time, before any head of the study (glosses 12 to 8 epochs,
  glyphs 40 to 30, Fashion-MNIST 3 to 2).
- The glyphs are easy (accuracies near .98): an expert costs few of them, and with softmax hardly any expert has an
  effect. A more distorted set was begun for that reason after these results were seen, and no head was trained on it.
  Their principal directions come from a randomised method without a seed, so other processes had slightly other ones.
- Most cells have three seeds, so two standard errors is a weak test, and nothing is corrected for the many
  comparisons. That half of the classes and 64 experts are borders comes from earlier runs on the same glosses and
  glyphs; that 128 experts for 252 classes count as half (at most .52), and that fewer than two lost samples are
  vacuous, was set by hand, the latter after the runs were seen.
- Whether classes by expert become more special as N grows to half of C depends on comparing them in numbers or as a
  share; neither is right by itself.

## What this cannot show

The paper's models and data: ImageNet, CLIP and DINO, fine-tuned. Features are frozen, but for Fashion-MNIST's small
network; a class has 20 (glyphs), 75 (glosses 252), a few hundred to two thousand (glosses 50 and 10) or 6,000
(Fashion-MNIST) training samples where ImageNet has 1,300.

"""
