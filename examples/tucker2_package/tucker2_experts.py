"""Tucker2: experts that share an input and an output basis, each with its own small matrix between them."""

from factorized_moe import Decomposition, TensorNetwork


class Tucker2(Decomposition):
    """``W[n, .., i, o] = sum_(b, c) B[i, b] G[n, .., b, c] C[c, o]`` (Kolda & Bader 2009).

    The rank is one int R for both bases. Costs: ``R (I + O) + prod(N_k) R^2`` parameters; experts of rank R.
    """

    def network(self, expert_dims, in_features, out_features, rank):
        experts = [f"expert_{k}" for k in range(len(expert_dims))]
        nodes = {"input": "in rank_in", "core": [*experts, "rank_in", "rank_out"], "output": "rank_out out"}
        bonds = {"rank_in": rank, "rank_out": rank}
        return TensorNetwork.from_modes(expert_dims, in_features, out_features, nodes=nodes, bonds=bonds)
