"""From rows of a manifest to targets and extra inputs, by hand: when an event is on, which negatives are drawn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from caeav.manifests.clip import Clip, Event, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.masks import pack_mask
from caeav.model.adapters.batch import NEGATIVE, Epoch, Inputs, InputSpec, TokenBatch, TrunkOutput
from caeav.model.tasks.avqa.task import REFERENCE_FRAMES, Negatives
from caeav.model.tasks.avs.task import masks_of
from caeav.model.tasks.avvp.head import AvvpOutput
from caeav.model.tasks.avvp.loss import avvp_loss
from caeav.model.tasks.base import TASKS
from caeav.model.tasks.sample import Sample
from caeav.model.train.config_file import resolve_config
from caeav.model.train.losses import caption_contrast, consistency, guidance_losses

CLASSES = ("bell", "dog", "drum")


def inputs(segments: int = 4, segment_s: float = 1.0, **facts: Any) -> Inputs:
    return Inputs("d", CLASSES, segment_s, InputSpec(segments, (), ()), facts)


def sample(*events: Event, split: str = "val", **extra: Any) -> Sample:
    return Sample("c", Clip("c", "c.mp4", 0.0, 4.0, split, events, extra), split)


def on(row: Tensor) -> dict[str, str]:
    """Class -> its seconds, as `.11.`; classes that are never on are left out."""
    tracks = {name: "".join("1" if x else "." for x in row[:, k]) for k, name in enumerate(CLASSES)}
    return {name: track for name, track in tracks.items() if "1" in track}


@pytest.mark.parametrize(("start", "end", "segment_s", "track"), [
    (1.0, 3.0, 1.0, ".11."),  # the end is not part of an event
    (0.5, 2.0, 1.0, ".1.."),  # a segment counts where it begins within the event
    (0.0, 2.0, 2.0, "1..."),  # segments of two seconds
    (2.0, 8.0, 2.0, ".111"),
    (1.0, 2.0, 0.5, "..11"),
    (2.0, 2.0, 1.0, "...."),  # without length, and backwards
    (3.0, 1.0, 1.0, "...."),
    (3.0, 99.0, 1.0, "...1"),
])  # fmt: skip
def test_an_event_covers_the_segments_that_begin_within_it(
    start: float, end: float, segment_s: float, track: str
) -> None:
    given = [sample(Event("dog", start, end))]
    found = TASKS["ave"].targets(inputs(segment_s=segment_s), given)["labels"][0]
    assert on(found) == ({"dog": track} if "1" in track else {})
    assert found.sum(dim=1).eq(1).all()
    assert ["1" if x else "." for x in found[:, 3]] == ["." if c == "1" else "1" for c in track]


def test_where_two_events_overlap_the_first_class_counts() -> None:
    given = [sample(Event("drum", 0.0, 3.0), Event("bell", 2.0, 4.0))]
    assert on(TASKS["ave"].targets(inputs(), given)["labels"][0]) == {"drum": "11..", "bell": "..11"}


def test_an_event_of_no_named_modality_is_seen_and_heard() -> None:
    events = Event("dog", 0.0, 2.0), Event("bell", 1.0, 3.0, "audio"), Event("drum", 3.0, 4.0, "visual")
    found = TASKS["avvp"].targets(inputs(), [sample(*events)])
    assert on(found["audio"][0]) == {"dog": "11..", "bell": ".11."}
    assert on(found["visual"][0]) == {"dog": "11..", "drum": "...1"}
    assert found["labels"][0].tolist() == [1, 1, 1]  # of the clip, whatever the modality


def test_clip_labels_come_from_the_row_and_seconds_are_known_where_possible() -> None:
    event = Event("dog", 0.0, 1.0)
    given = [
        sample(split="train", labels=["bell", "drum"]),
        sample(event, split="train"),
        sample(split="val"),  # a clip without events, and that is known
        sample(event, split="test", labels=["bell"]),
    ]
    found = TASKS["avvp"].targets(inputs(), given)
    assert found["labels"].tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert found["timed"].tolist() == [False, True, True, True]
    with pytest.raises(CaeavError, match="labels that are not classes: cat"):
        TASKS["avvp"].targets(inputs(), [sample(labels=["cat"])])


def test_each_keep_setting_smooths_its_own_modality() -> None:
    rng = torch.Generator().manual_seed(0)
    p = [torch.rand((2, 3), generator=rng) for _ in range(3)]
    frames, names = torch.rand(2, 4, 3), torch.randn(3, 3)
    found, labels = AvvpOutput(*p, frames, frames, names, names.t()), torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    config = resolve_config("avvp", assignments=["loss.audio_keep=0.7", "loss.visual_keep=0.6"])
    losses = TASKS["avvp"].losses(found, SimpleNamespace(targets={"labels": labels}), config)
    for name, prob, keep in (("clip", p[0], 1.0), ("audio", p[1], 0.7), ("visual", p[2], 0.6)):
        target = keep * labels + (1 - keep) / 2
        wanted = torch.nn.functional.binary_cross_entropy(prob, target)
        torch.testing.assert_close(losses[name], wanted)
    assert avvp_loss(found, labels).audio_token != avvp_loss(found, labels).visual_token


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_the_configured_threshold_decides_the_scores(threshold: float) -> None:
    config = resolve_config("avvp", assignments=[f"metric.threshold={threshold}"])
    task, truth = TASKS["avvp"], torch.ones(1, 4, 3)
    half = torch.full((1, 3), 0.5)
    frames = half.unsqueeze(1).expand(1, 4, 3)
    found = AvvpOutput(half, half, half, frames, frames, torch.zeros(3, 3), torch.zeros(3, 3))
    scorer = task.build_scorer(inputs(), config)
    targets = {"audio": truth, "visual": truth, "timed": torch.ones(1, dtype=torch.bool)}
    scorer.add(found, SimpleNamespace(targets=targets, keys=["c"]))  # type: ignore[arg-type]
    assert scorer.result().value == (100 if threshold < 0.5 else 0)


# ---- questions -----------------------------------------------------------------------------------------------


def asked(*words: str) -> Sample:
    return Sample("q", Clip("c", "c.mp4", 0.0, 4.0), "train", {"words": list(words), "text": " ".join(words)})


def test_words_are_found_with_either_first_letter_and_cut_to_their_places() -> None:
    made = inputs(words=["<pad>", "How", "many", "bells", "<unk>"], places=4)
    rows = [asked("how", "Many", "bells"), asked("cats"), asked("How", "many", "bells", "many", "How")]
    assert TASKS["avqa"].extra_inputs(made, rows)["question"].tolist() == [
        [1, 2, 3, 0],
        [4, 0, 0, 0],
        [1, 2, 3, 2],
    ]


def test_vocabulary_and_answers_come_from_train_and_places_from_all() -> None:
    def question(split: str, answer: str, *words: str) -> Sample:
        detail = {"words": list(words), "answer": answer, "type": ["Audio", "Counting"]}
        return Sample("q", Clip("c", "c.mp4", 0.0, 4.0), split, detail)

    splits = {
        "train": [question("train", "two", "how", "many"), question("train", "one", "many", "bells")],
        "val": [question("val", "nine", *["word"] * 17)],
    }
    facts = TASKS["avqa"].fit_metadata(Manifest("d", 4, 1.0, (), ()), splits)
    assert facts == {
        "words": ["<pad>", "how", "many", "bells", "<unk>"],
        "answers": ["two", "one"],
        "places": 17,
    }
    assert TASKS["avqa"].fit_metadata(Manifest("d", 4, 1.0, ("x",), ()), splits)["answers"] == ["x"]


class Frames:
    """A split of `videos` clips whose tokens say clip and segment; two questions a clip."""

    def __init__(self, videos: int, segments: int) -> None:
        self.clips = [str(i) for i in range(videos)]
        self.clip_of = [i // 2 for i in range(2 * videos)]
        self.batch = TokenBatch(
            ["a"], {"shallow": torch.zeros(1), "deep": torch.zeros(1, segments, 1, 2)}, {}, torch.ones(1), torch.ones(1)
        )  # fmt: skip

    def segments(self, tap: str, clips: Tensor, segments: Tensor) -> Tensor:
        assert tap == "deep"
        return torch.stack([clips, segments], dim=-1)[:, :, None]

    def drawn(self, rows: list[int], epoch: Epoch | None) -> Tensor | None:
        """`[B, T, 2]`: clip and segment."""
        extra = Negatives()(self.batch, rows, self, epoch).extra  # type: ignore[arg-type]
        return extra[NEGATIVE][:, :, 0] if NEGATIVE in extra else None


def test_negatives_are_drawn_from_seed_epoch_and_row_over_all_clips_and_segments() -> None:
    data = Frames(videos=30, segments=10)
    first, again, *others = (
        data.drawn(list(rows), epoch)
        for rows, epoch in (((4, 5), Epoch(0, 1)), ((4, 5), Epoch(0, 1)), ((4, 5), Epoch(0, 2)),
                            ((4, 5), Epoch(1, 1)), ((5, 4), Epoch(0, 1)))
    )  # fmt: skip
    assert first is not None and again is not None
    assert torch.equal(first, again) and torch.equal(others[2], first.flip(0))  # type: ignore[arg-type]
    assert not torch.equal(first, others[0]) and not torch.equal(first, others[1])  # type: ignore[arg-type]
    assert not torch.equal(first[0], first[1])  # two questions about a clip
    many = data.drawn(list(range(60)), Epoch(0, 1))
    assert many is not None
    assert set(many[..., 0].unique().tolist()) == set(range(30))
    assert set(many[..., 1].unique().tolist()) == set(range(10))
    own = torch.tensor(data.clip_of)[:, None]
    numbers = many[..., 0] * 10 + many[..., 1]
    assert not bool((numbers // REFERENCE_FRAMES == own).any())  # the reference's rejection, as it is
    assert data.drawn([0], None) is None and Frames(1, 10).drawn([0], Epoch(0, 1)) is None


def test_frames_of_other_videos_are_drawn_only_where_the_match_loss_counts() -> None:
    for settings, changes in (
        (["loss.match=0.5", "model.head.negatives=mixed"], 1),
        (["loss.match=0.5", "model.head.negatives=batch"], 0),
        (["loss.match=0", "model.variant=reference"], 0),
    ):
        assert len(TASKS["avqa"].transforms(resolve_config("avqa", assignments=settings))) == changes


# ---- objectives on both modalities ---------------------------------------------------------------------------


def test_objectives_read_each_modalitys_own_captions_in_float32() -> None:
    torch.manual_seed(0)
    aux = {f"proj_{name}": torch.randn(3, 2, 4) for name in ("visual", "audio")}
    aux |= {f"proj_{name}_caption": torch.randn(3, 4) for name in ("visual", "audio")}
    aux["contrastive_temperature"] = torch.tensor(0.2)
    agreement = torch.rand(3, 2, requires_grad=True)
    out = TrunkOutput(torch.zeros(3, 2, 1, 4), torch.zeros(3, 2, 1, 4), agreement, aux=aux)
    ok = torch.ones(3, 2, dtype=torch.bool)
    batch = TokenBatch(["a", "b", "c"], {}, {}, ok, ok)
    batch.visual_caption, batch.audio_caption = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    batch.visual_caption[1] = batch.visual_caption[
        0
    ]  # two clips share their visual caption, none their audio caption
    batch.audio_caption_mask = torch.tensor([[True, False], [True, False], [True, True]])
    batch.audio_caption[2, 0] = batch.audio_caption[0, 0]
    alike = torch.eye(3, dtype=torch.bool)
    alike[0, 1] = alike[1, 0] = True
    parts = [
        caption_contrast(aux[f"proj_{name}"], aux[f"proj_{name}_caption"], same, torch.tensor(0.2))
        for name, same in (("visual", alike), ("audio", torch.eye(3, dtype=torch.bool)))
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = guidance_losses(out, batch)
    assert torch.equal(found["caption_contrast"], (parts[0] + parts[1]) / 2)
    wanted = consistency(aux["proj_visual"], aux["proj_audio"], agreement)
    assert torch.equal(found["consistency"], wanted) and not found["consistency"].requires_grad


def test_a_manifest_without_what_a_task_learns_from_is_refused() -> None:
    made = Manifest("d", 4, 1.0, CLASSES, ())
    timed, bare = sample(Event("dog", 0.0, 1.0)), sample()
    for task, split in (("ave", "train"), ("avvp", "val"), ("avvp", "test")):
        splits = {name: [timed if name == split else bare] for name in ("train", "val", "test")}
        assert TASKS[task].fit_metadata(made, splits) == {}
    for task, split in (("ave", "test"), ("avvp", "train")):
        splits = {name: [timed if name == split else bare] for name in ("train", "val", "test")}
        with pytest.raises(CaeavError, match="has an event"):
            TASKS[task].fit_metadata(made, splits)


def test_masks_are_packed_bits_and_only_known_frames_count() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((2, 3, 5)) > 0.5
    texts = [pack_mask(truth[0]), None, pack_mask(truth[1]), None]
    made = inputs(mask_size=[3, 5])
    found = TASKS["avs-s4"].targets(made, [sample(masks=texts, category="dog")])
    assert found["known"].tolist() == [[True, False, True, False]]
    masks = masks_of(found, (3, 5))[0]
    assert np.array_equal(masks[0], truth[0]) and np.array_equal(masks[2], truth[1])
    assert found["groups"].tolist() == [[False, True, False]]
    # What stands in unknown frames is not scored.
    scorer = TASKS["avs-s4"].build_scorer(made, resolve_config("avs-s4"))
    logits = torch.where(masks, 9.0, -9.0).unsqueeze(0)
    logits[:, [1, 3]] = 9.0
    scorer.add(SimpleNamespace(mask_logits=logits), SimpleNamespace(targets=found, keys=["c"]))  # type: ignore[arg-type]
    assert scorer.result().value == pytest.approx(100, abs=1e-4)
