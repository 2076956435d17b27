"""The report on one network: what is kept, broken and skipped, and at which sizes."""

import re

import pytest

from factorized_moe import FactorizedExpertTensor, TensorNetwork
from factorized_moe.testing import LAWS, check_network

TUCKER = "expert_0 a, in b, out c, a b c; expert_0=8 in=16 out=32 a=4 b=5 c=6"
SHARED = "left@both: in_0 a, right@both: in_1 a, out a; in_0=5 in_1=5 in=22 out=6 a=3"
QUICK = ("forward_equals_dense", "parameter_count", "initial_variance")


@pytest.mark.thorough
def test_a_good_network_keeps_every_law() -> None:
    report = check_network(TensorNetwork.parse(TUCKER))
    assert report.ok
    assert [result.law for result in report.results] == list(LAWS)
    assert {result.law for result in report.results if result.outcome != "kept"} == {
        "dense_equals_tensorly",
        "tensorly_round_trip",
        "every_mode_learns",
    }
    assert set(report.network.sizes.values()) == {4}
    assert f"laws: {len(LAWS) - 3} kept, 3 skipped" in str(report)


def test_a_shared_parameter_has_no_fit() -> None:
    report = check_network(TensorNetwork.parse(SHARED), laws=(*QUICK, "fit_recovers"), largest=3)
    assert [result.outcome for result in report.results] == ["kept", "kept", "skipped", "skipped"]
    assert "two nodes share a parameter" in str(report)
    assert report.network.sizes == {"in_0": 3, "in_1": 3, "out": 3, "a": 3}
    assert report.network.in_padding == 2  # 3 in the network given, at most one step of in_0


def test_a_broken_law_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = FactorizedExpertTensor.forward
    monkeypatch.setattr(FactorizedExpertTensor, "forward", lambda w, x, a: forward(w, x, a) * 1.01)
    report = check_network(TensorNetwork.parse(TUCKER), laws=QUICK)
    assert not report.ok
    assert [result.outcome for result in report.results] == ["broken", "kept", "kept"]
    text = r"broken: forward_equals_dense\s+forward in torch.float64: off by .*\(bias=False,\s+batch\s+\(3,\)\)"
    assert re.search(text, str(report), re.DOTALL)


def test_an_error_is_reported_with_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(w: FactorizedExpertTensor, x: object, a: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(FactorizedExpertTensor, "forward", fail)
    report = check_network(TensorNetwork.parse(TUCKER), laws=["forward_equals_dense"])
    assert report.results[0].message == "RuntimeError: out of order (bias=False, batch (3,))"


def test_opting_out() -> None:
    report = check_network(TensorNetwork.parse(TUCKER), laws=QUICK, opt_out={"initial_variance": "it is not Gaussian"})
    assert [result.outcome for result in report.results] == ["kept", "kept", "skipped"]
    assert str(report).endswith("skipped: initial_variance\n    it is not Gaussian")


@pytest.mark.parametrize("options", [{"laws": ["gravity"]}, {"opt_out": {"gravity": "weightless"}}], ids=str)
def test_refuses_what_is_no_law(options: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match=r"\['gravity'\] are no laws; the laws are \['autocast_agrees', "):
        check_network(TensorNetwork.parse(TUCKER), **options)  # type: ignore[arg-type]
