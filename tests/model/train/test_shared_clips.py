"""Questions about a video share its tokens in a batch: same numbers as one by one, adapters run once per clip."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from stopping import StopAt, StopError, train_logged
from torch import Tensor

from caeav.manifests.clip import Clip, Manifest
from caeav.manifests.core.home import Home
from caeav.model.adapters.batch import Epoch, TokenBatch
from caeav.model.tasks.config import StressConfig
from caeav.model.train.config_file import resolve_config
from caeav.model.train.data import epoch_order
from caeav.model.train.experiment import Experiment, prepare, reopen
from caeav.model.train.losses import weighted_losses
from caeav.model.train.runs import create_run
from caeav.model.train.stress import Augment, Stress
from caeav.pipeline.store import Recipe, Record, open_for_writing

CPU = torch.device("cpu")
TAPS = {"visual.s1": (4, 16), "visual.s2": (4, 16), "audio.s1": (4, 8), "audio.s2": (4, 8)}
KINDS = (["Visual", "Location"], ["Audio", "Counting"], ["Audio", "Comparative"])


def asked(video: int, split: str, number: int) -> dict[str, Any]:
    words = ["What", f"word{number % 4}"]
    text = {"words": words, "text": " ".join(words), "template": ""}
    answer = "yes" if (video + number) % 3 else "no"
    return {"id": 10 * video + number, "split": split, "type": KINDS[number % 3], "answer": answer} | text


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """12 training videos with 1 to 6 questions each, and 3 for each other split."""
    home = Home(tmp_path_factory.mktemp("shared"))
    rng = np.random.default_rng(0)
    clips, records = [], {}
    for i in range(18):
        split = "train" if i < 12 else ("val", "test")[i % 2]
        questions = [asked(i, split, q) for q in range(1 + i % 6)]
        clips.append(Clip(f"q{i}", f"q{i}.mp4", 0.0, 4.0, "", (), {"questions": questions}))
        arrays = {name: rng.normal(size=(4, *shape)).astype(np.float32) for name, shape in TAPS.items()}
        ok = [True] * 4
        records[f"q{i}"] = Record(f"q{i}", arrays, {"frames_ok": ok, "audio_ok": ok, "facts": {}})
    manifest = Manifest("asked", 4, 1.0, ("yes", "no"), tuple(clips))
    recipe = Recipe("tokens", "hand", {"made": "by the tests", "shard_clips": 8})
    with open_for_writing(home.stores / "asked", recipe, manifest) as writer:
        for plan in writer.plan():
            writer.publish(plan, {key: records[key] for key in plan.missing})
        writer.finish()
    return home


def made(home: Home, *sets: str, recipe: str = "avmoe") -> Experiment:
    small = ["training.device=cpu", "training.workers=0", "model.head.match_widths=[8,8,8]"]
    return prepare(home, resolve_config("avqa", recipe, None, [*small, *sets], {"dataset": "asked"}))


def repeated(batch: TokenBatch) -> TokenBatch:
    """The same batch with separate tokens for every question."""
    assert batch.clip_of is not None

    def rows(x: Tensor) -> Tensor:
        return x[batch.clip_of]

    return replace(
        batch,
        visual={name: rows(x) for name, x in batch.visual.items()},
        audio={name: rows(x) for name, x in batch.audio.items()},
        frames_ok=rows(batch.frames_ok),
        audio_ok=rows(batch.audio_ok),
        clip_of=None,
    )


def test_a_clip_is_read_once_for_all_its_questions(home: Home) -> None:
    data = made(home).data["train"]
    rows = [row for row, clip in enumerate(data.clip_of) if clip in (5, 7)][::-1]
    batch = data.batch(rows)
    assert batch.visual["visual.s2"].shape[0] == batch.frames_ok.shape[0] == 2
    assert batch.extra["question"].shape[0] == batch.targets["answer"].shape[0] == len(rows) == 8
    assert batch.clip_of is not None
    assert [data.clips_of(rows)[i] for i in batch.clip_of.tolist()] == [data.clip_of[row] for row in rows]
    for i, row in enumerate(rows):
        alone = data.batch([row])
        assert alone.clip_of is None
        assert torch.equal(alone.audio["audio.s1"][0], batch.audio["audio.s1"][int(batch.clip_of[i])])


def test_sharing_gives_the_scores_and_gradients_of_repeating(home: Home) -> None:
    """With each clip asked equally often; batch statistics weigh clips, not questions."""
    match = ("loss.match=0.5", "model.head.negatives=mixed")  # which do not depend on the batch
    experiment = made(home, "model.head.input_norm=none", "model.head.dropout=0", *match)
    data = experiment.data["train"]
    rows = [row for row, clip in enumerate(data.clip_of) if clip in (5, 11)]
    for model in (experiment.build().eval(), experiment.build()):
        shared = data.batch(rows, Epoch(0, 1))
        outputs = []
        for batch in (shared, repeated(shared)):
            model.zero_grad()
            output = model(batch)
            loss = weighted_losses(experiment.task, output, batch, experiment.config)
            torch.stack(list(loss.values())).sum().backward()
            grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            outputs.append((output, loss, grads))
        (a, loss_a, grads_a), (b, loss_b, grads_b) = outputs
        assert a.trunk.visual.shape[0] == 2 and b.trunk.visual.shape[0] == len(rows) == 12
        for x, y in zip(a.found, b.found, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
        assert {"answer", "match"} <= set(loss_a)
        for name in ("answer", "match"):
            torch.testing.assert_close(loss_a[name], loss_b[name], rtol=1e-4, atol=1e-5)
        assert any(name.startswith("trunk.") and x.abs().max() > 0 for name, x in grads_a.items())
        for name, x in grads_a.items():
            torch.testing.assert_close(x, grads_b[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_scores_do_not_depend_on_what_shares_a_batch(home: Home, batch_size: int) -> None:
    whole, cut = made(home), made(home, f"training.batch_size={batch_size}")
    model = whole.build()
    assert whole.score(model, "train").per_class == cut.score(model, "train").per_class
    assert whole.score(model, "train").value == pytest.approx(cut.score(model, "train").value)


@pytest.mark.parametrize(
    "change", [Stress(StressConfig(swap=0.5, shift=1)), Augment(StressConfig(blind=0.5))]
)
def test_stress_is_applied_once_per_clip_and_as_for_one_question(home: Home, change: Any) -> None:
    data = made(home).data["train"].transformed(change)
    epoch = Epoch(1, 2) if isinstance(change, Augment) else None
    plain = made(home).data["train"]
    rows = list(range(len(data)))
    batch, before = data.batch(rows, epoch), plain.batch(rows)
    assert batch.clip_of is not None
    for name in ("visual.s2", "audio.s2"):
        held, untouched = ((x.visual | x.audio)[name] for x in (batch, before))
        for i, row in enumerate(rows):
            alone = data.batch([row], epoch)
            assert torch.equal((alone.visual | alone.audio)[name][0], held[batch.clip_of[i]])
        if (name == "audio.s2") is isinstance(change, Stress):
            assert not torch.equal(held, untouched)


def test_rows_of_a_clip_follow_each_other_in_groups_of_the_size_asked_for() -> None:
    clip_of = [clip for clip, n in enumerate((1, 5, 9, 2, 4, 1)) for _ in range(n)]
    rows = len(clip_of)
    orders = [epoch_order(rows, *which, clip_of, 4).tolist() for which in ((0, 1), (0, 1), (0, 2), (1, 1))]
    assert orders[0] == orders[1] and orders[0] != orders[2] and orders[0] != orders[3]
    for order in orders:
        assert sorted(order) == list(range(rows))
        clips = [clip_of[row] for row in order]
        cuts = [0, *(i for i in range(1, rows) if clips[i] != clips[i - 1]), rows]
        # 5 are 4 and 1, 9 are 4, 4 and 1; two groups of one clip may meet
        assert len(cuts) - 1 <= 1 + 2 + 3 + 1 + 1 + 1
        assert all(later - sooner in (1, 2, 4, 5, 8, 9) for sooner, later in pairwise(cuts))
    one = epoch_order(rows, 0, 1, clip_of, 1)
    assert one.tolist() == epoch_order(rows, 0, 1).tolist()
    assert len(epoch_order(0, 0, 1, (), 4)) == 0


def test_every_group_is_equally_likely_to_come_first() -> None:
    clip_of = [0] * 4 + list(range(1, 5))
    first = [clip_of[int(epoch_order(8, 0, n, clip_of, 4)[0])] for n in range(500)]
    assert 60 < first.count(0) < 140  # one of five groups


def test_a_run_stopped_within_a_group_resumes_as_if_undisturbed(home: Home) -> None:
    sets = ("training.samples_per_clip=4", "training.epochs=3", "training.checkpoint_every_steps=1",
            "training.batch_size=5")  # fmt: skip
    first = made(home, *sets)
    whole, stopped = create_run(home, first.config), create_run(home, first.config)

    train_logged(first, whole)
    with pytest.raises(StopError):
        train_logged(made(home, *sets), stopped, StopAt(2, 3))
    torch.manual_seed(99)
    train_logged(reopen(home, stopped), stopped)
    for name in ("best.safetensors", "last.safetensors"):
        assert (stopped.checkpoints / name).read_bytes() == (whole.checkpoints / name).read_bytes()
