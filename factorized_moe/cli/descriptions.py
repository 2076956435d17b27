"""`factorized-moe list`, `plan`, `params` and `draw`: what a decomposition and a weight are, without any training."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factorized_moe.cli.command import Command, read_rank_like, read_sizes, whole_number

if TYPE_CHECKING:
    from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["COMMANDS"]

FORMATS = (".svg", ".png", ".pdf")
DOTS_PER_INCH = 200
"""Of a picture of pixels."""


def _add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def _add_weight_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--decomposition", metavar="NAME", help="a registered name, see `list`; default: cp")
    parser.add_argument(
        "--expert-dims", type=read_sizes, metavar="N", help="the number of experts; 8x4 for two expert modes"
    )
    parser.add_argument("--in-features", type=whole_number(1), metavar="I", help="the size of an expert's input")
    parser.add_argument("--out-features", type=whole_number(1), metavar="O", help="the size of its output")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--rank",
        type=read_rank_like,
        metavar="R",
        help="a number, one for each mode or bond such as 4,2,8,8, a fraction of the dense size such as 0.05, or same",
    )
    size.add_argument(
        "--budget",
        type=whole_number(1),
        metavar="N",
        help="instead of a rank: the most parameters that a layer of this weight may have, its gate's counted",
    )
    parser.add_argument(
        "--network",
        metavar="TEXT",
        help="instead of all these: any network with its sizes, such as 'expert_0 a, in a, a out; expert_0=8 in=16 "
        "out=32 a=4'",
    )
    parser.add_argument(
        "--bias", action="store_true", help="whether every expert has a bias; with --network its input counts the bias"
    )
    _add_json_option(parser)


def _weight(options: argparse.Namespace, device: str = "meta") -> FactorizedExpertTensor:
    """The weight that the options describe; on the meta device nothing is allocated."""
    from factorized_moe.budgets import Budget
    from factorized_moe.network import TensorNetwork
    from factorized_moe.tensor import FactorizedExpertTensor

    given = vars(options)
    kept = {"bias": given.get("bias", False), "device": device}
    needed = ("expert_dims", "in_features", "out_features")
    spelled = {name: f"--{name.replace('_', '-')}" for name in (*needed, "decomposition", "rank", "budget")}
    if "network" in given:
        beside = [option for name, option in spelled.items() if name in given]
        if beside:
            raise ValueError(f"--network says what {beside[0]} would say; give one of the two")
        described: dict[str, Any] = {"network": TensorNetwork.parse(given["network"])}
    else:
        missing = [spelled[name] for name in needed if name not in given]
        if not {"rank", "budget"} & given.keys():
            missing.append("--rank (or --budget)")
        if missing:
            raise ValueError(f"missing: {', '.join(missing)}; or give a --network")
        described = {name: given[name] for name in (*needed, "decomposition") if name in given}
        if "rank" in given:
            described["rank"] = given["rank"]
        else:  # of the layer, so its gate counts
            linears = [(described["in_features"], described["out_features"])]
            described["rank"] = Budget(parameters=given["budget"]).rank(
                described["expert_dims"],
                linears,
                **{key: described[key] for key in ("decomposition",) if key in described},
                bias=kept["bias"],
                gate_rank=given.get("gate_rank"),
            )
    try:
        return FactorizedExpertTensor(**described, **kept)
    except RuntimeError as error:  # how torch says that a tensor is too large for the memory
        raise ValueError(f"torch makes no weight of these sizes: {str(error).splitlines()[0]}") from error


def _described(weight: FactorizedExpertTensor) -> dict[str, Any]:
    """The keys that every description of a weight has."""
    from factorized_moe.decompositions import GivenNetwork, name_of

    written = isinstance(weight.decomposition, GivenNetwork)
    return {
        "decomposition": None if written else name_of(weight.decomposition),
        "expert_dims": weight.expert_dims,
        "in_features": weight.in_features,
        "out_features": weight.out_features,
        "bias": weight.bias,
        "rank": None if written else weight.rank,
        "network": str(weight.network),
    }


def _heading(weight: FactorizedExpertTensor) -> str:
    described = _described(weight)
    experts = f"{' x '.join(map(str, weight.expert_dims))} experts" if weight.expert_dims else "no expert mode"
    rank = described["rank"]
    size = "" if rank is None else f" of rank {rank if isinstance(rank, int) else ','.join(map(str, rank))}"
    return (
        f"{described['decomposition'] or 'network'}{size}: {experts}, {weight.in_features} -> {weight.out_features} "
        f"features, {'bias' if weight.bias else 'no bias'}"
    )


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def _run_list(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from factorized_moe.decompositions import available_decompositions, registration_of

    registrations = [registration_of(name) for name in available_decompositions()]
    if "json" in options:
        _print_json([asdict(registration) for registration in registrations])
        return
    for registration in registrations:
        aliases = f" ({', '.join(registration.aliases)})" if registration.aliases else ""
        print(f"{registration.name}{aliases}")
        if registration.summary:
            print(f"    {registration.summary.replace('``', '')}")
        print(f"    initialisations: {', '.join(registration.initialisations) or 'none'}")
        print(f"    {registration.source}")


def _add_plan_options(parser: argparse.ArgumentParser) -> None:
    _add_weight_options(parser)
    parser.add_argument("--batch-size", type=whole_number(1), metavar="B", help="the number of samples; default: 64")
    parser.add_argument(
        "--optimize",
        choices=("flops", "measure"),
        help="flops: plan from the description alone; measure: time the best candidates on this machine",
    )
    parser.add_argument(
        "--memory-limit", type=whole_number(1), metavar="BYTES", help="the most that an intermediate value may take"
    )
    parser.add_argument(
        "--shards",
        type=whole_number(2),
        metavar="P",
        help="show instead what each label costs a rank if the weight is cut along it over P ranks; needs no device",
    )


def _run_plan(options: argparse.Namespace) -> None:
    asked = {name: vars(options)[name] for name in ("batch_size", "optimize", "memory_limit") if name in options}
    weight = _weight(options, "cpu" if asked.get("optimize") == "measure" else "meta")
    try:
        plan = weight.plan(**asked)
    except RuntimeError as error:  # the samples that are to be timed are too many for the memory
        raise ValueError(f"torch cannot time this plan: {str(error).splitlines()[0]}") from error
    if "shards" in options:
        from factorized_moe.parallel import describe_shards, shard_rows

        if "json" in options:
            _print_json({**_described(weight), "ranks": options.shards, "shards": shard_rows(plan, options.shards)})
        else:
            size = f"{options.shards} ranks, {plan.batch_size:,} samples, per rank"
            print(f"{_heading(weight)}\n{size}:\n{describe_shards(plan, options.shards)}")
        return
    if "json" not in options:
        print(f"{_heading(weight)}\n{plan}")
        return
    costs = ("batch_size", "flops", "elements_moved", "largest_intermediate", "saved_activations")
    steps = [
        {
            "formula": step.formula,
            "operation": type(step.operation).__name__,
            "flops": step.flops,
            "elements": step.elements,
        }
        for step in plan.steps
    ]
    _print_json({**_described(weight), **{name: getattr(plan, name) for name in costs}, "steps": steps})


def _add_params_options(parser: argparse.ArgumentParser) -> None:
    _add_weight_options(parser)
    parser.add_argument(
        "--gate-rank",
        type=whole_number(1),
        metavar="R",
        help="the rank of the gate's weight: two maps in place of one; default: one map",
    )


def _run_params(options: argparse.Namespace) -> None:
    from factorized_moe.gating import ExpertGate

    weight = _weight(options)
    gate = ExpertGate(weight.in_features, weight.expert_dims, rank=vars(options).get("gate_rank"), device="meta")
    counts = {
        "weight_parameters": weight.num_parameters,
        "gate_parameters": gate.num_parameters,
        "expert_rank_bound": weight.expert_rank_bound,
    }
    shapes = weight.network.parameter_shapes
    if "json" in options:
        _print_json({**_described(weight), **counts, "parameter_shapes": shapes})
        return
    rows = [("weight", f"{weight.num_parameters:,} parameters")]
    rows += [(f"  {name}", " x ".join(map(str, shape)) or "one number") for name, shape in shapes.items()]
    rows += [
        ("gate", f"{gate.num_parameters:,} parameters"),
        ("rank of an expert", f"at most {weight.expert_rank_bound:,}"),
    ]
    longest = max(len(name) for name, _ in rows)
    print(_heading(weight))
    for name, text in rows:
        print(f"  {name:<{longest}}  {text}")


def _add_draw_options(parser: argparse.ArgumentParser) -> None:
    _add_weight_options(parser)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", required=True, help=f"the picture, of a name in {', '.join(FORMATS)}"
    )
    parser.add_argument("--force", action="store_true", help="replace the file if there is one")


def _run_draw(options: argparse.Namespace) -> None:
    from factorized_moe._writing import write_files
    from factorized_moe.drawing import draw

    out: Path = options.out
    if out.suffix.lower() not in FORMATS:
        raise ValueError(f"--out {out}: the name of a picture ends in {', '.join(FORMATS)}")
    if out.exists() and "force" not in options:
        raise ValueError(f"--out {out}: there is such a file; give another name, or --force to replace it")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}")
    weight = _weight(options)
    figure = draw(weight.network).get_figure(root=True)
    assert figure is not None  # draw has made one
    write_files(out.parent, {out.name: lambda place: figure.savefig(place, dpi=DOTS_PER_INCH)})
    if "json" in options:
        _print_json({**_described(weight), "file": str(out)})
    else:
        print(f"{_heading(weight)}\nDrawn to {out}")


COMMANDS = (
    Command(
        "list",
        "list the registered decompositions",
        "List the registered decompositions, those of installed packages included: names, formula, initialisations, "
        "source.",
        _add_json_option,
        _run_list,
    ),
    Command(
        "plan",
        "show the steps of a forward pass and what they cost",
        "Show the plan of a weight: the contractions of a forward pass, with their FLOPs and the elements they make. "
        "Nothing is allocated unless it is measured.",
        _add_plan_options,
        _run_plan,
    ),
    Command(
        "params",
        "count the parameters of a weight and its gate",
        "Count the parameters of a weight and of its gate, for a rank or the largest rank within a budget, and bound "
        "the rank of an expert's matrix.",
        _add_params_options,
        _run_params,
    ),
    Command(
        "draw",
        "draw the diagram of a weight's network",
        "Draw the network of a weight, with the size of every bond and mode, to an SVG, PNG or PDF file.",
        _add_draw_options,
        _run_draw,
    ),
)
