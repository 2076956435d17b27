"""The profile of entmax counts what it should, and its table says what was counted."""

from __future__ import annotations

import torch

from benchmarks import entmax_profile
from benchmarks.measuring import Effort


def test_profile_counts_operations_over_all_logits_and_puts_the_others_together() -> None:
    large, small = torch.randn(400, 500), torch.randn(5)

    def call() -> object:
        return (large * 2 + large.exp()).sum(-1), small * 2, small * 3, large.view(-1)

    shares = {share.kind: share for share in entmax_profile.shares(call, large.numel(), repeats=5)}
    kinds = {name: entmax_profile.KINDS[name] for name in ("mul", "add", "sum")}
    assert [shares[kind].calls for kind in (*kinds.values(), "`exp`")] == [1, 1, 1, 1]
    assert shares[entmax_profile.SMALL].calls >= 2
    assert list(shares)[-2:] == [entmax_profile.SMALL, entmax_profile.BETWEEN]
    assert all(share.seconds > 0 for kind, share in shares.items() if kind != entmax_profile.BETWEEN)
    page = entmax_profile.markdown(
        {"forward": [entmax_profile.Share("one", 3, 1e-3), entmax_profile.Share("two", 0, 3e-3)]}
    )
    assert "| one | 3 | 25% |\n| two |  | 75% |\n" in page


def test_profile_of_entmax_names_what_it_does() -> None:
    found = entmax_profile.profiles(Effort(seconds=0, fewest=1, most=2), (256, 1024))
    forward, training = ({share.kind: share.calls for share in each} for each in found.values())
    norms, sums, products = (entmax_profile.KINDS[name] for name in ("linalg_vector_norm", "sum", "mul"))
    assert 2 <= forward[norms] == forward[sums] == training[norms] == training[sums] - 2  # two sums of the derivative
    assert products not in forward
    assert training[products] == 2
