"""The light objectives: values by hand, gradients, which clips are negatives, and what is absent without its source."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from caeav.model.adapters.batch import TokenBatch, TrunkOutput
from caeav.model.tasks.config import LossConfig
from caeav.model.train.config_file import resolve_config
from caeav.model.train.losses import (
    bounded_temperature,
    caption_contrast,
    consistency,
    guidance_losses,
    same_caption,
    selection_entropy,
)

NOBODY = torch.eye(2, dtype=torch.bool)


def test_contrast_by_hand() -> None:
    # Mean segments (2, 0) and (3, 4) -> unit (1, 0), (0.6, 0.8); captions along the axes; products / 0.5.
    clips = torch.tensor([[[1.0, 1.0], [3.0, -1.0]], [[3.0, 4.0], [3.0, 4.0]]])
    captions = torch.tensor([[5.0, 0.0], [0.0, 0.1]])
    rows = math.log(1 + math.exp(0 - 2)) + math.log(1 + math.exp(1.2 - 1.6))
    columns = math.log(1 + math.exp(1.2 - 2)) + math.log(1 + math.exp(0 - 1.6))
    got = caption_contrast(clips, captions, NOBODY, torch.tensor(0.5))
    assert got.item() == pytest.approx((rows + columns) / 4, abs=1e-6)
    assert got.item() == pytest.approx(0.298736, abs=1e-6)


def test_clips_with_the_same_caption_are_no_negatives() -> None:
    torch.manual_seed(0)
    clips, captions = torch.randn(3, 4, 5), torch.randn(3, 5)
    captions[2] = captions[0]
    same = torch.eye(3, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    got = caption_contrast(clips, captions, same, torch.tensor(0.2))
    # By hand: clips 0 and 2 see caption 1 alone as a negative, clip 1 sees both others.
    unit = [torch.nn.functional.normalize(x, dim=-1) for x in (clips.mean(1), captions)]
    e = (unit[0] @ unit[1].t() / 0.2).exp()
    rows = [e[0, 1], e[1, 0] + e[1, 2], e[2, 1]]
    columns = [e[1, 0], e[0, 1] + e[2, 1], e[1, 2]]
    want = (
        sum(((e[i, i] + other) / e[i, i]).log() for axis in (rows, columns) for i, other in enumerate(axis))
        / 6
    )
    torch.testing.assert_close(got, want)
    assert (
        caption_contrast(clips, captions, torch.ones(3, 3, dtype=torch.bool), torch.tensor(0.2)).item() == 0
    )
    assert caption_contrast(clips[:1], captions[:1], same[:1, :1], torch.tensor(0.2)).item() == 0


def test_same_captions_are_recognised_by_their_real_tokens() -> None:
    tokens = torch.randn(4, 3, 2, dtype=torch.float32).half()
    mask = torch.tensor([[True, True, False]] * 3 + [[True, True, True]])
    tokens[1] = tokens[0]
    tokens[1, 2] = 7.0  # padding differs
    tokens[3] = tokens[0]  # one token more
    tokens[3, 2] = 0.0
    want = torch.eye(4, dtype=torch.bool)
    want[0, 1] = want[1, 0] = True
    assert torch.equal(same_caption(tokens, mask), want)
    assert torch.equal(same_caption(tokens, None)[0, 1], torch.tensor(False))


def test_temperature_stays_in_bounds_and_can_return_from_outside() -> None:
    for given, effective in ((0.2, 0.2), (5.0, 1.0), (1e-4, 0.02), (-1.0, 0.02)):
        assert bounded_temperature(torch.tensor(given)).item() == pytest.approx(effective, rel=1e-6)
    above = torch.tensor(1.5, requires_grad=True)
    (inwards,) = torch.autograd.grad(bounded_temperature(above), above)
    (outwards,) = torch.autograd.grad(-bounded_temperature(above), above)
    assert inwards > 0 and outwards == 0  # descent lowers it, and cannot raise it further
    below = torch.tensor(0.01, requires_grad=True)
    (inwards,) = torch.autograd.grad(-bounded_temperature(below), below)
    (outwards,) = torch.autograd.grad(bounded_temperature(below), below)
    assert inwards < 0 and outwards == 0


def test_consistency_by_hand() -> None:
    visual = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[3.0, 4.0], [1.0, 1.0]]])
    audio = torch.tensor([[[0.0, 2.0], [2.0, 0.0]], [[1.0, 0.0], [-1.0, -1.0]]])
    agreement = torch.tensor([[0.5, 0.9], [0.25, 0.0]])
    want = (0.5 * 1 + 0.9 * 0 + 0.25 * (1 - 0.6) + 0.0 * 2) / 4
    assert consistency(visual, audio, agreement).item() == pytest.approx(want, abs=1e-6)


def test_seconds_that_disagree_are_not_forced_and_the_gate_does_not_learn() -> None:
    torch.manual_seed(0)
    visual, audio = (torch.randn(1, 2, 3, requires_grad=True) for _ in range(2))
    agreement = torch.tensor([[1.0, 0.0]], requires_grad=True)
    consistency(visual, audio, agreement).backward()
    assert visual.grad is not None and audio.grad is not None
    assert visual.grad[0, 0].any() and audio.grad[0, 0].any()
    assert not visual.grad[0, 1].any() and not audio.grad[0, 1].any()
    assert agreement.grad is None


def test_entropy_by_hand() -> None:
    p = torch.tensor([[[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.25] * 4]])
    assert selection_entropy(p).item() == pytest.approx((0.5 + 0 + 1) / 3, abs=1e-6)
    assert selection_entropy(torch.ones(2, 3, 1)).item() == 0


def test_entropy_of_a_certain_selector_has_a_finite_gradient() -> None:
    logits = torch.tensor([[[400.0, 0.0, -400.0]]], requires_grad=True)  # two probabilities underflow to 0
    selection_entropy(logits.softmax(dim=-1)).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_gradients_are_the_derivatives() -> None:
    torch.manual_seed(0)
    clips, captions = torch.randn(3, 2, 4), torch.randn(3, 4)
    same = torch.eye(3, dtype=torch.bool)
    # Losses are computed in float32, which leaves finite differences three digits.
    options = {"eps": 1e-2, "atol": 2e-3, "rtol": 2e-2, "nondet_tol": 0.0}

    def checked(f: object, *inputs: Tensor) -> None:
        given = [x.clone().requires_grad_() for x in inputs]
        torch.autograd.gradcheck(f, given, **options)  # type: ignore[arg-type]

    with pytest.warns(UserWarning, match="not a double precision"):
        checked(lambda x, c, t: caption_contrast(x, c, same, t), clips, captions, torch.tensor(0.5))
        checked(lambda v, a: consistency(v, a, torch.rand(3, 2).fill_(0.7)), clips, clips.flip(0))
        checked(lambda x: selection_entropy(x.softmax(-1)), clips)


def trunk_output(**changes: object) -> TrunkOutput:
    torch.manual_seed(0)
    b, t = 2, 3
    aux = {f"proj_{name}": torch.randn(b, t, 4) for name in ("visual", "audio")}
    aux |= {f"proj_{name}_caption": torch.randn(b, 4) for name in ("visual", "audio")}
    aux |= {f"selected_{name}": torch.rand(b, t, 5).softmax(-1) for name in ("visual", "audio")}
    aux["contrastive_temperature"] = torch.tensor(0.2)
    out = TrunkOutput(torch.zeros(b, t, 5, 4), torch.zeros(b, t, 5, 4), torch.rand(b, t), aux=aux)
    return replace(out, **changes)  # type: ignore[arg-type]


def token_batch() -> TokenBatch:
    ok = torch.ones(2, 3, dtype=torch.bool)
    batch = TokenBatch(["a", "b"], {}, {}, ok, ok)
    batch.visual_caption, batch.audio_caption = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    return batch


def test_modalities_are_averaged_and_what_has_no_source_is_absent() -> None:
    out, batch = trunk_output(), token_batch()
    found = guidance_losses(out, batch)
    assert found.keys() == {"caption_contrast", "consistency", "selection_entropy"}
    parts = [selection_entropy(out.aux[f"selected_{name}"]) for name in ("visual", "audio")]
    torch.testing.assert_close(found["selection_entropy"], (parts[0] + parts[1]) / 2)
    assert "consistency" not in guidance_losses(trunk_output(agreement=None), batch)
    assert guidance_losses(trunk_output(aux={}), batch) == {}


def test_every_objective_has_a_weight() -> None:
    names = guidance_losses(trunk_output(), token_batch()).keys()
    assert names <= LossConfig().model_dump().keys()
    assert all(LossConfig().model_dump()[name] == 0 for name in names)
    assert all(resolve_config().loss.model_dump()[name] > 0 for name in names)
