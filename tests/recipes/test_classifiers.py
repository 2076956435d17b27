"""The Mixer and the fine-tuned backbone: they learn, go on to the bit, and equal themselves in two processes."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

import recipes.train
from factorized_moe import MuMoE, MuMoEBlock
from factorized_moe.surgery import load
from recipes.augmentation import Augmentation
from recipes.head.backbones import load_backbone
from recipes.head.fine_tuning import head
from recipes.head.lines import read_lines
from recipes.mixer.mixing import Mixer, MixerOptions, mixer
from recipes.recipe import cross_entropy, has_experts
from tests.recipes.small_runs import (
    assert_close,
    assert_equal,
    forget,
    head_options,
    killed_at,
    mixer_options,
    parameters,
    run_head,
    run_mixer,
    write_images,
    write_lines,
)
from tests.recipes.test_ranks import run_on_ranks

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("data") / "lines.tsv")


def test_a_killed_mixer_ends_as_one_that_was_not(images: Path, tmp_path: Path, monkeypatch) -> None:
    run_mixer(mixer_options(images, tmp_path / "whole"))
    options = mixer_options(images, tmp_path / "killed")
    with killed_at(monkeypatch, recipes.train, "clip_gradients", 7):
        run_mixer(options)
    run_mixer(options)
    assert_equal(parameters(options.out), parameters(tmp_path / "whole"))


@pytest.mark.parametrize("kind", ["images", "lines"])
def test_a_killed_head_ends_as_one_that_was_not(kind: str, request, tmp_path: Path, monkeypatch) -> None:
    data = request.getfixturevalue(kind)
    run_head(head_options(data, tmp_path / "whole"))
    options = head_options(data, tmp_path / "killed")
    with killed_at(monkeypatch, recipes.train, "clip_gradients", 7):
        run_head(options)
    run_head(options)
    assert_equal(parameters(options.out), parameters(tmp_path / "whole"))


def test_they_learn(images: Path, lines: Path, tmp_path: Path) -> None:
    assert run_mixer(mixer_options(images, tmp_path / "mixer", augment=False, stochastic_depth=0.0)) < 0.3
    assert run_head(head_options(images, tmp_path / "head")) < 0.3
    assert run_head(head_options(lines, tmp_path / "lines", steps=40)) < 0.4
    for name in ("mixer", "head", "lines"):
        assert (tmp_path / name / "report.html").exists()
        assert json.loads((tmp_path / name / "results.json").read_text())["held_out"]["accuracy"] == 1.0


def test_two_processes_equal_one(images: Path, tmp_path: Path) -> None:
    """Dropped values and branches are each process's own, so without them."""
    for options, run in (
        (mixer_options(images, tmp_path / "mixer", stochastic_depth=0.0), run_mixer),
        (head_options(images, tmp_path / "head", dropout=0.0), run_head),
    ):
        run(options)
        two = dataclasses.replace(options, out=tmp_path / f"{options.out.name}-two")
        run_on_ranks(two, run=run)
        assert_close(parameters(two.out), parameters(options.out))


def test_the_mixer_has_the_papers_size() -> None:
    options = MixerOptions(depth=8, side=224, patch=16, form="dense")
    with torch.device("meta"):
        sizes = {
            form: count(Mixer(dataclasses.replace(options, form=form, experts=(64,)), 3, 1000))
            for form in ("dense", "cp", "tr")
        }
    assert sizes["dense"] == 18_528_264  # the paper's configuration
    assert 0.99 * sizes["dense"] < sizes["cp"] <= sizes["dense"]
    assert 0.95 * sizes["dense"] < sizes["tr"] <= sizes["dense"]


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_mixed_labels_are_shares(images: Path, tmp_path: Path) -> None:
    recipe = mixer(mixer_options(images, tmp_path))
    labels = torch.stack([recipe.training(n)[1] for n in range(40)])
    assert labels.shape == (40, 2)
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(40))
    assert ((labels > 0.01) & (labels < 0.99)).any()
    assert all(torch.equal(recipe.training(n)[0], recipe.training(n)[0]) for n in range(3))
    logits = torch.tensor([[2.0, -1.0]])
    mixed = float(cross_entropy(logits, torch.tensor([[0.25, 0.75]])))
    assert mixed == pytest.approx(
        sum(w * float(cross_entropy(logits, torch.tensor([k]))) for k, w in enumerate((0.25, 0.75)))
    )


def test_branches_are_left_out_in_training_only(images: Path, tmp_path: Path) -> None:
    model = mixer(mixer_options(images, tmp_path, stochastic_depth=0.5, gate_norm="layer")).build()
    x = torch.randn(64, 3, 14, 14)
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    assert [block.drop for block in model.blocks] == [0.0, 0.5]


def test_experts_stand_where_they_are_asked_for(images: Path, tmp_path: Path) -> None:
    forget()
    for place, kind in (("head", MuMoE), ("mlps", MuMoEBlock)):
        model = head(head_options(images, tmp_path, place=place, last=1)).build()
        found = [part for part in model.modules() if isinstance(part, MuMoE | MuMoEBlock)]
        assert [type(part) for part in found] == [kind]
    assert not has_experts(head(head_options(images, tmp_path, form="dense")).build())


def test_the_backbone_has_a_rate_of_its_own(images: Path, tmp_path: Path) -> None:
    options = head_options(images, tmp_path, place="mlps", last=1)
    recipe = head(options)
    model = recipe.build()
    groups = recipe.groups(model, 0.1)
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates["factors"] == rates["gates"] == 1e-2
    assert rates["matrices of the backbone"] == 1e-3
    assert sum(p.numel() for g in groups for p in g["params"]) == count(model)
    frozen = head(dataclasses.replace(options, backbone_rate=0.0, place="head"))
    names = [group["name"] for group in frozen.groups(frozen.build(), 0.1)]
    assert names
    assert not any("backbone" in name for name in names)


def test_a_pretrained_backbone_is_read(images: Path, tmp_path: Path) -> None:
    """CLIP's vision tower, DINOv2 with its masked token, which nothing uses, and ViT, from folders."""
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    pictures = {**sizes, "image_size": 16, "patch_size": 8}
    text = {**sizes, "vocab_size": 50, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 1}
    made = {
        "clip": transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=pictures)),
        "dinov2": transformers.Dinov2Model(transformers.Dinov2Config(**pictures, mlp_ratio=2)),
        "vit": transformers.ViTModel(transformers.ViTConfig(**pictures), add_pooling_layer=False),
    }
    for name, model in made.items():
        model.save_pretrained(tmp_path / name)
        options = head_options(images, tmp_path / f"{name}-run", backbone=str(tmp_path / name), steps=4)
        backbone = load_backbone(options.backbone, True, options)
        own = dict(getattr(model, "vision_model", model).state_dict())
        assert all(torch.equal(value, own[key]) for key, value in backbone.state_dict().items() if key in own)
        assert math.isfinite(run_on_ranks(options, run=run_head)[0]["loss"])
        tuned = load_backbone(str(options.out / "huggingface"), True, options)
        trained = parameters(options.out)
        assert all(torch.equal(p, trained[f"model.backbone.{key}"]) for key, p in tuned.named_parameters())
    model = load(
        head(head_options(images, tmp_path, backbone=str(tmp_path / "vit"), form="dense")).build(),
        tmp_path / "vit-run/model",
    )
    assert isinstance(model.head, MuMoE)


def test_crops_only_where_asked(images: Path, tmp_path: Path) -> None:
    plain, changed = (head(head_options(images, tmp_path, augment=augment, side=14)) for augment in (False, True))
    assert torch.equal(plain.training(0)[0], plain.training(0)[0])
    assert not torch.equal(plain.training(0)[0], changed.training(0)[0])
    assert torch.equal(plain.held_out(0)[0], changed.held_out(0)[0])
    assert Augmentation(14).operations == 2


def test_lines_are_read_and_faults_named(lines: Path, tmp_path: Path) -> None:
    training, tested = read_lines(lines)
    assert training.classes == ("product", "sum")
    assert (len(training), len(tested)) == (28, 2)
    for content, message in (
        ("a\tone\nb two\n", "line 2: a label, a tab and a text were expected, got 'b two'"),
        ("a\tone\na\ttwo\n", "has 1 classes"),
        ("a\tone\na\ttwo\nb\tthree\n", "class b has one line; two are needed"),
    ):
        (tmp_path / "wrong.tsv").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_lines(tmp_path / "wrong.tsv")
    (tmp_path / "train.tsv").write_text("a\tone\nb\ttwo\n")
    with pytest.raises(FileNotFoundError, match=r"test.tsv: no such file"):
        read_lines(tmp_path)
    (tmp_path / "test.tsv").write_text("a\tone\nc\ttwo\n")
    with pytest.raises(ValueError, match=r"not in both train.tsv and test.tsv: b, c"):
        read_lines(tmp_path)


def test_an_unreadable_image_stops_a_run_with_its_checkpoint_kept(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    options = mixer_options(images, tmp_path / "run", mixup=0.0)
    forget()
    recipe = mixer(options)
    order = [recipe.training(n)[1].argmax().item() for n in range(1)]
    assert order[0] in (0, 1)
    from recipes.images import read_images
    from recipes.recipe import shuffled

    training, _ = read_images(images)
    early = {shuffled(n, len(training), 0) for n in range(32)}
    late = next(k for k in range(len(training)) if k not in early)  # first read after the checkpoint of step 4
    good = training.places[late].read_bytes()
    training.places[late].write_bytes(b"spoilt")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        run_mixer(options)
    training.places[late].write_bytes(good)
    run_mixer(options)
    run_mixer(dataclasses.replace(options, out=tmp_path / "whole"))
    assert_equal(parameters(options.out), parameters(tmp_path / "whole"))
