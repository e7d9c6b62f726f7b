"""Variant and preset as bundles of settings; each fix changes its own part and nothing else."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from random_weights import random_double
from token_batches import SMALL, token_batch
from torch import Tensor, nn

from caeav.model.adapters.batch import CaptionSpec
from caeav.model.adapters.case import Case
from caeav.model.adapters.config import FIXES, PEER_FIXES, PRESETS, SIZES, VARIANTS, AdapterConfig, CaseConfig
from caeav.model.adapters.ladder import LadderTrunk
from caeav.model.adapters.layers import TokenSelector, token_topk_mask
from caeav.model.adapters.moe import CrossExpert, UniExpert, latent_attention, load_balance, mutual_attention

DOUBLE = torch.float64


def settings(config: AdapterConfig) -> dict[str, Any]:
    """`part.name` -> value."""
    flat: dict[str, Any] = {}
    for name, value in config.model_dump().items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def changed(a: AdapterConfig, b: AdapterConfig) -> set[str]:
    old, new = settings(a), settings(b)
    return {name for name in old if old[name] != new[name]}


# ---- bundles -------------------------------------------------------------------------------------------------


def test_the_default_is_the_published_method() -> None:
    assert changed(AdapterConfig(), AdapterConfig(variant="reference", preset="reference")) == set()
    flat = settings(AdapterConfig())
    assert {name: flat[name] for name in FIXES | SIZES} == {n: v[0] for n, v in (FIXES | SIZES).items()}


def test_a_bundle_sets_exactly_its_settings() -> None:
    assert changed(AdapterConfig(), AdapterConfig(variant="revised")) == {"variant", *FIXES, *PEER_FIXES}
    assert changed(AdapterConfig(), AdapterConfig(preset="lite")) == {"preset", *SIZES}
    both = settings(AdapterConfig(variant="revised", preset="lite"))
    assert {name: both[name] for name in FIXES | SIZES} == {n: v[1] for n, v in (FIXES | SIZES).items()}
    assert all(
        bundle.keys() <= settings(AdapterConfig()).keys() | {"case", "avmoe", "caste", "lavish", "dg_sct"}
        for bundle in (*VARIANTS.values(), *PRESETS.values())
    )


def test_the_documentation_has_the_values_of_the_bundles(repository: Path) -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (repository / "docs" / "VARIANTS.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    cells = {name: row[1:3] for row in rows for name in [row[0]]}
    at = {path: f" at {fixed}" for path, (_, fixed) in FIXES.items() if not isinstance(fixed, bool)}
    assert at and all(said in cells[f"`{path}`"][1] for path, said in at.items())
    documented: dict[str, tuple[str, str]] = {}
    for names, (reference, lite) in cells.items():
        split = [names.replace("`", "").split(", "), reference.split(", "), lite.split(", ")]
        if set(split[0]) & set(SIZES):
            documented |= {name: (old, new) for name, old, new in zip(*split, strict=True)}
    assert documented == {name: (str(old or "full"), str(new)) for name, (old, new) in SIZES.items()}


@pytest.mark.parametrize("path", FIXES)
def test_one_fix_can_be_switched_off_or_on_alone(path: str) -> None:
    part, _, name = path.rpartition(".")
    reference, revised = FIXES[path]
    for variant, value in (("revised", reference), ("reference", revised)):
        given: dict[str, Any] = {part: {name: value}} if part else {name: value}
        config = AdapterConfig.model_validate({"variant": variant, **given})
        assert changed(AdapterConfig(variant=variant), config) == {path}  # type: ignore[arg-type]


def test_given_settings_override_a_bundle() -> None:
    config = AdapterConfig(variant="revised", case=CaseConfig(heads=4, gate_gradient=False))
    assert config.case.heads == 4 and not config.case.gate_gradient and config.case.selective_injection


def test_a_resolved_configuration_reads_back_as_it_is() -> None:
    config = AdapterConfig.model_validate(
        {"variant": "revised", "preset": "lite", "case": {"width": 7}, "gate_init": 0.0}
    )
    assert AdapterConfig.model_validate(config.model_dump()) == config


def test_unknown_bundles_are_refused() -> None:
    with pytest.raises(ValueError, match="variant\n  Input should be 'reference' or 'revised'"):
        AdapterConfig.model_validate({"variant": "better"})
    with pytest.raises(ValueError, match="preset\n  Input should be 'reference' or 'lite'"):
        AdapterConfig.model_validate({"preset": "tiny"})


# ---- fixes ---------------------------------------------------------------------------------------------------


def case_inputs() -> list[Tensor]:
    torch.manual_seed(1)
    shapes = [(6, 10, 16), (6, 7, 8), (2, 5, 16), (2, 4, 8)]
    return [torch.randn(*shape, dtype=DOUBLE) for shape in shapes]


def make_case(**switches: Any) -> Any:
    return random_double(Case(16, 8, proj_dim=4, heads=4, **switches), seed=3).eval()


def test_selective_injection_leaves_unselected_tokens_to_their_norm() -> None:
    inputs = case_inputs()
    for selective in (False, True):
        m = make_case(selective_injection=selective)
        seen: list[Tensor] = []
        m.temporal_visual.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
        out = m(*inputs, 3)
        mask, gate = token_topk_mask(seen[0], 0.3), out.gate_visual[:, None, None]
        weights = gate * mask if selective else gate * mask / 3 + 1 - gate  # 3 of 10 tokens
        torch.testing.assert_close(out.visual, m.out_norm_visual(inputs[0] + weights * seen[0]))
    plain, fixed = make_case()(*inputs, 3), make_case(selective_injection=True)(*inputs, 3)
    torch.testing.assert_close(plain.gate_visual, fixed.gate_visual)
    torch.testing.assert_close(plain.visual_caption, fixed.visual_caption)
    assert not torch.equal(plain.visual, fixed.visual)


def test_whole_selection_weighs_one_in_training_too_and_passes_the_soft_gradient() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 10, 4, dtype=DOUBLE, requires_grad=True)
    noise = torch.empty(3, 10, dtype=DOUBLE).exponential_()
    whole, soft = TokenSelector(0.3, whole=True).to(DOUBLE), TokenSelector(0.3).to(DOUBLE)
    weights, p = whole(x, noise)
    kept, q = soft(x, noise)
    assert p is not None and q is not None
    assert torch.equal(p, q)
    assert torch.equal(weights != 0, kept != 0) and weights.sum().item() == 9
    assert set(weights.unique().tolist()) == {0.0, 1.0}
    direction = torch.randn(3, 10, 1, dtype=DOUBLE)
    got = torch.autograd.grad((weights * direction).sum(), [x, whole.temperature])
    want = torch.autograd.grad((q.unsqueeze(-1) * direction).sum(), [x, soft.temperature])
    torch.testing.assert_close(got, want)
    whole.eval()
    assert torch.equal(whole(x)[0], token_topk_mask(x, 0.3))


def test_whole_selection_never_selects_more_than_k() -> None:
    x = torch.full((1, 10, 1), 1.0)
    x[0, :2, 0] = 100.0  # all other probabilities underflow to 0
    weights, _ = TokenSelector(0.3, whole=True)(x, torch.ones(1, 10))
    assert weights.sum().item() == 3


def test_gate_gradient_lets_captions_learn_and_keeps_the_output() -> None:
    inputs = case_inputs()
    grads, outputs = [], []
    for on in (False, True):
        m = make_case(gate_gradient=on)
        out = m(*inputs, 3)
        outputs.append(out.visual)
        (grad,) = torch.autograd.grad(
            out.visual.square().sum(), m.ffn_visual_caption.fc_in.weight, allow_unused=True
        )
        grads.append(grad)
        assert out.gate_visual.requires_grad is on
    assert torch.equal(*outputs)
    assert grads[0] is None and grads[1].any()  # what a caption says reaches the tokens through the gate


def test_captions_reach_the_tokens_from_the_first_step_unless_they_start_at_zero() -> None:
    torch.manual_seed(0)
    one, other = token_batch(SMALL), token_batch(SMALL)
    other.visual, other.audio = one.visual, one.audio
    assert one.visual_caption is not None and other.visual_caption is not None
    other.visual_caption = other.visual_caption + torch.randn_like(other.visual_caption)
    for zero in (True, False):
        config = AdapterConfig.model_validate({"case": {"proj_dim": 4, "heads": 4, "zero_start": zero}})
        trunk = LadderTrunk(SMALL, config).eval()
        assert torch.equal(trunk(one).visual, trunk(other).visual) is zero


def test_scaled_attention_divides_by_the_root_of_the_width() -> None:
    torch.manual_seed(0)
    x, c = torch.randn(2, 5, 9, dtype=DOUBLE), torch.randn(2, 5, 9, dtype=DOUBLE)
    latents, gate = torch.rand(3, 9, dtype=DOUBLE), torch.tensor([0.7], dtype=DOUBLE)
    read = latents + torch.softmax(latents @ c.mT / 3, -1) @ c
    want = x + 0.7 * torch.softmax(x @ read.mT / 3, -1) @ read
    torch.testing.assert_close(latent_attention(x, c, latents, gate, scaled=True), want)
    want = x + 0.7 * torch.softmax(x @ x.mT / 3, -1).mT @ x
    torch.testing.assert_close(mutual_attention(x, gate, scaled=True), want)
    for kind in ("gated", "latent"):
        pair = [random_double(UniExpert(8, 4, 2, attention=kind, scaled=s), seed=3) for s in (False, True)]  # type: ignore[arg-type]
        assert not torch.allclose(*(m(x[..., :8]) for m in pair))
    pair = [random_double(CrossExpert(8, 4, 2, 3, scaled=s), seed=3) for s in (False, True)]
    assert not torch.allclose(*(m(x[..., :8], c[..., :8]) for m in pair))


def test_nonlinear_uni_experts_rectify_the_bottleneck() -> None:
    x = torch.randn(2, 5, 8, dtype=DOUBLE)
    options = {"pre_norm": False, "post_norm": False, "out_gate": False}
    linear, fixed = (random_double(UniExpert(8, 4, 2, nonlinear=n, **options), seed=3) for n in (False, True))
    torch.testing.assert_close(linear(-x), -linear(x))
    down, up = (torch.block_diag(*part.blocks()) for part in (fixed.down, fixed.up))
    torch.testing.assert_close(fixed(x), (x @ down.t()).relu() @ up.t())


def test_uniform_target_is_the_divergence() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25], [0.7, 0.15, 0.15]], dtype=DOUBLE)
    m = p.mean(0)
    want = sum(1 / 3 * math.log((1 / 3) / float(q)) for q in m)
    assert load_balance(p, uniform_target=True).item() == pytest.approx(want)
    assert load_balance(p).item() == pytest.approx(-sum(math.log(float(q)) for q in m))
    even = torch.full((4, 3), 1 / 3, dtype=DOUBLE)
    assert load_balance(even, uniform_target=True).item() == pytest.approx(0, abs=1e-12)


# ---- through the trunk ---------------------------------------------------------------------------------------


def opened(config: AdapterConfig) -> LadderTrunk:
    """A trunk with random weights (the same for every configuration of one form), in eval mode."""
    trunk = LadderTrunk(SMALL, config)
    torch.manual_seed(5)
    for name, p in sorted(trunk.named_parameters()):
        if not name.endswith(("norm.weight", "norm.bias")):
            nn.init.normal_(p, std=0.3)
    return trunk.eval()


@pytest.mark.parametrize(
    "path", [path for path in FIXES if path not in ("gate_init", "caste.shared_agreement", "case.zero_start")]
)
def test_every_fix_reaches_the_modules_and_adds_no_parameter(path: str) -> None:
    part, _, name = path.rpartition(".")
    batch = token_batch(SMALL)
    base = {"case": {"proj_dim": 4, "heads": 4}, "avmoe": {"latents": 3, "reduction": 2}}
    assert FIXES[path] == (False, True)
    one = {**base, part: {**base[part], name: True}}
    plain, fixed = (opened(AdapterConfig.model_validate(given)) for given in (base, one))
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in fixed.named_parameters()]
    before, after = plain(batch), fixed(batch)
    same_tokens = torch.equal(before.visual, after.visual)
    assert same_tokens is (path in ("avmoe.uniform_target", "case.gate_gradient"))
    same_balance = torch.equal(before.losses["load_balance"], after.losses["load_balance"])
    assert same_balance is (part == "case")


def test_open_inner_gates_let_everything_learn_from_the_second_step() -> None:
    batch = token_batch(SMALL)
    learning = {}
    for gate_init in (0.0, 0.1):
        torch.manual_seed(0)
        trunk = LadderTrunk(
            SMALL, AdapterConfig(gate_init=gate_init).model_copy(update={"case": CaseConfig(enabled=False)})
        )
        assert torch.equal(trunk(batch).visual, batch.visual["visual.b"])  # the outer gates are still closed
        for name, p in trunk.named_parameters():  # as after one step: the outer gates have moved
            if name.endswith("out_gate") or ("gamma" in name and name.split(".")[-2].startswith("caste")):
                nn.init.constant_(p, 0.01)
        trunk(batch).visual.square().sum().backward()
        learning[gate_init] = {
            n
            for n, p in trunk.named_parameters()
            if p.grad is not None and p.grad.any() and not n.endswith("pre_norm.bias")
        }  # a constant in front of a batch norm has no effect: its gradient is nothing but rounding
    woken = learning[0.1] - learning[0.0]
    assert learning[0.0] < learning[0.1]
    assert any("spatial.attn.value" in n for n in woken) and any("temporal.pointwise" in n for n in woken)
    assert any("latent_tokens" in n for n in woken) and any("gate.mlp_in" in n for n in woken)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("modality", ["visual", "audio"])
def test_each_caption_is_masked_by_the_padding_of_its_own_modality(modality: str, masked: bool) -> None:
    """Words of padding change nothing, real ones do; where padding is attended, as in the reference, all do."""
    spec = replace(SMALL, audio_caption=CaptionSpec(5, 16))
    trunk = LadderTrunk(spec, AdapterConfig.model_validate({
        "case": {"proj_dim": 4, "heads": 4, "mask_padding": masked}, "avmoe": {"enabled": False}
    }))  # fmt: skip
    random_double(trunk, seed=3).float().eval()
    batch = token_batch(spec)
    places = {"visual": [0, 3], "audio": [0, 1, 4]}  # real words, not the first ones on purpose
    for name, real in places.items():
        mask = torch.zeros(2, 5, dtype=torch.bool)
        mask[:, real] = True
        setattr(batch, f"{name}_caption_mask", mask)

    def outputs() -> list[Tensor]:
        out = trunk(batch)
        return [out.visual, out.audio, *(x for name, x in sorted(out.aux.items()) if "caption" in name)]

    before = outputs()
    for word in range(5):
        caption = getattr(batch, f"{modality}_caption")
        kept = caption[:, word].clone()
        caption[:, word] += torch.randn_like(kept)
        same = all(torch.equal(a, b) for a, b in zip(before, outputs(), strict=True))
        assert same is (masked and word not in places[modality])
        caption[:, word] = kept
