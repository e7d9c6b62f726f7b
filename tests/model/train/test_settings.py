"""No setting is accepted and then ignored: another value changes something visible, or is refused with a reason."""

from __future__ import annotations

import math
import typing
import zlib
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from caeav.manifests.core.errors import CaeavError
from caeav.model.adapters.batch import NEGATIVE, CaptionSpec, Inputs, InputSpec, TokenBatch
from caeav.model.adapters.config import COPIES
from caeav.model.tasks.base import TASKS
from caeav.model.tasks.config import RunConfig
from caeav.model.train.config_file import (
    ConfigError,
    config_class,
    dump_config,
    load_config,
    preset_names,
    resolve_config,
    resolve_recipes,
)
from caeav.model.train.losses import weighted_losses
from caeav.model.train.network import build_network
from caeav.model.train.optimiser import lr_factor, make_optimiser
from caeav.pipeline.store.record import Tap

T, SIDE = 4, 8  # segments, pixels of a mask's side
CAPTION = CaptionSpec(5, 16)
SPEC = InputSpec(
    T,
    (Tap("visual.stage1", 16, 8), Tap("visual.stage2", 4, 16)),
    (Tap("audio.stage1", 4, 32), Tap("audio.stage2", 4, 16)),
    CAPTION,
    CAPTION,
)
FACTS = {"mask_size": [SIDE, SIDE], "words": list("abcdef"), "places": 6}
SMALL = {
    "ave": ["width=16", "hidden=16", "visual_in=16", "audio_in=16"],
    "ave-weak": ["width=16", "context=true"],
    "avvp": ["width=16", "heads=2", "audio_depth=1", "visual_depth=1", "cross_depth=1"],
    "avs-s4": ["channels=8", "audio_in=8", "width=8", "hidden=8", "mask_size=16", "out_channels=[8, 4]"],
    "avqa": ["match_widths=[8, 8, 8]", "answer_hidden=8"],
}
ON = {
    "ave": ["loss.load_balance=0.1", "loss.gate=0.5"],
    "ave-weak": ["loss.caption_contrast=0.1"],
    "avvp": ["model.head.gates=0.5"],
    "avs-s4": ["loss.masked=0.5"],
    "avqa": ["loss.match=0.5"],
}
"""Settings that switch on all parts of a task, so that each of their settings has an effect."""
LIKE = {"avs-ms3": "avs-s4"}  # one task under two names

OTHER: dict[str, Any] = {  # where a value twice as large is none that is allowed
    "model.adapters.case.width": 8,
    "model.adapters.avmoe.groups": 1,
    "model.adapters.avmoe.reduction": 2,
    "model.adapters.case.topk_ratio": 0.75,
    "model.adapters.avmoe.num_skip": 1,
    "model.head.heads": 1,
    "model.head.topk_frames": 2,
    "model.head.pad_index": 1,
    **{
        f"model.adapters.{peer}.{name}": value
        for peer in ("lavish", "dg_sct")
        for name, value in (("groups", 1), ("reduction", 2), ("alpha", 0.6))
    },
}


def small(task: str, *more: str) -> list[str]:
    name = LIKE.get(task, task)
    return [*(f"model.head.{setting}" for setting in SMALL[name]), *ON[name], *more]


def leaves(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{before}{name}.")
        else:
            yield before + name, value


def annotation(task: str, path: str) -> Any:
    form: Any = config_class(task)
    for name in path.split("."):
        field = form.model_fields[name]
        form = field.annotation
    return form


def others(task: str, path: str, value: Any) -> list[Any]:
    """Other values that the setting may have."""
    if path in OTHER:
        return [OTHER[path]]
    kind = annotation(task, path)
    if typing.get_origin(kind) is typing.Literal:
        return [word for word in typing.get_args(kind) if word != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [2 * value or 2]
    if isinstance(value, float):
        return [0.5 * value or 0.25]
    if isinstance(value, list | tuple):
        return [[2 * x for x in value]]
    raise AssertionError(f"{path}: say in OTHER what else than {value!r} it may be")


# ---- what can be seen of a configuration ---------------------------------------------------------------------


def inputs(task: str) -> Inputs:
    return Inputs("tiny", ("bell", "dog", "drum"), 1.0, SPEC, FACTS)


def batch(task: str, clips: int, seed: int, *, negatives: bool) -> TokenBatch:
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    def chosen(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=rng)

    ok = torch.ones(clips, T, dtype=torch.bool)
    made = TokenBatch(
        list(map(str, range(clips))),
        {tap.name: normal(clips, T, tap.tokens, tap.channels) for tap in SPEC.visual},
        {tap.name: normal(clips, T, tap.tokens, tap.channels) for tap in SPEC.audio},
        ok,
        ok,
        normal(clips, 5, 16),
        torch.arange(5).expand(clips, -1) < 3,
        normal(clips, 5, 16),
        torch.arange(5).expand(clips, -1) < 2,
    )
    if task.startswith("ave"):
        made.targets = {"labels": torch.nn.functional.one_hot(chosen(4, clips, T), 4).float()}
    elif task == "avvp":
        seconds = [chosen(2, clips, T, 3).float() for _ in range(2)]
        made.targets = {"labels": chosen(2, clips, 3).float(), "audio": seconds[0], "visual": seconds[1]}
        made.targets["timed"] = torch.ones(clips, dtype=torch.bool)
    elif task == "avqa":
        made.targets = {"answer": chosen(3, clips), "type": chosen(9, clips)}
        question = chosen(6, clips, 6)
        question[:, 4:] = torch.arange(clips).unsqueeze(1) % 2  # some end in words number 0, the padding
        made.extra = {"question": question}
        if negatives:
            made.extra[NEGATIVE] = normal(clips, T, 4, 16)
    else:
        made.targets = {
            "masks": chosen(256, clips, T, SIDE * SIDE // 8).to(torch.uint8),
            "known": torch.ones(clips, T, dtype=torch.bool),
            "groups": chosen(2, clips, 3).bool(),
        }
    return made


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from tensors(one)


def seen(config: RunConfig) -> Iterator[Any]:
    """Rates, weights at the start, losses and gradients, outputs and scores, one after the other."""
    task, name = TASKS[config.task], config.task
    yield [lr_factor(config.schedule, step, 2, 9) for step in range(18)]
    transforms = task.transforms(config)
    yield len(transforms)
    torch.manual_seed(0)
    network = build_network(task, inputs(name), config.model)
    yield [(n, tuple(p.shape), p.detach().sum().item()) for n, p in network.named_parameters()]
    optimiser = make_optimiser(
        network, config.optimiser, agreement_lr_factor=config.model.adapters.caste.agreement_lr_factor
    )
    yield type(optimiser).__name__
    yield [(group["names"], group["lr"], group["weight_decay"]) for group in optimiser.param_groups]
    with torch.no_grad():  # away from the start, where gates hide what lies behind them
        for n, p in network.named_parameters():
            p.add_(
                0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(zlib.crc32(n.encode())))
            )
    first, second = (batch(name, n, n, negatives=bool(transforms)) for n in (4, 3))
    torch.manual_seed(1)
    losses = weighted_losses(task, network.train()(first), first, config)
    yield [(key, loss.item()) for key, loss in losses.items()]
    torch.stack(list(losses.values())).sum().backward()
    yield [p.grad.abs().sum().item() for p in network.parameters() if p.grad is not None]
    scorer = task.build_scorer(inputs(name), config)
    network.eval()
    for given in (first, second):
        given.extra.pop(NEGATIVE, None)
        with torch.no_grad():
            found = network(given).found
        yield [x.double().sum().item() for x in tensors(found)]
        scorer.add(found, given)
    scores = scorer.result()
    yield scores.value, sorted(scores.details.items())


def same(config: RunConfig, plain: list[Any]) -> bool:
    """Whether everything is as in `plain`; stops at the first difference."""
    return all(a == b for a, b in zip_longest(seen(config), plain))


def changed(task: str, path: str, value: Any, base: list[str]) -> tuple[bool, str]:
    """Whether the value changes anything, or why it is refused."""
    try:
        other = resolve_config(task, assignments=base, options={path: value})
        return not same(other, list(seen(resolve_config(task, assignments=base)))), ""
    except CaeavError as refusal:
        return False, str(refusal)


PEERS = "model.adapters.lavish.", "model.adapters.dg_sct."
OFF = (*PEERS, "model.probe.")
"""Parts that are switched off in the recipe `full`, so that their settings may have no effect."""
SECTIONS = {"ave": ("model.", "loss.", "metric.", "optimiser.", "schedule.")}


@pytest.mark.parametrize("task", sorted(SMALL))
def test_another_value_changes_something_or_is_refused(task: str) -> None:
    base = small(task)
    config = resolve_config(task, assignments=base)
    plain = list(seen(config))
    assert same(config, plain)  # else everything would seem to have an effect
    ignored, refused = [], set()
    for path, value in leaves(config.model_dump()):
        if not path.startswith((*SECTIONS.get(task, ("model.head.", "metric.")), "loss.")) or path.startswith(
            OFF
        ):
            continue
        for other in others(task, path, value):
            try:
                if same(resolve_config(task, assignments=base, options={path: other}), plain):
                    ignored.append(f"{path}={other} (now {value})")
            except CaeavError as refusal:
                assert path in str(refusal) or path.rpartition(".")[2] in str(refusal), refusal
                refused.add(path)
    assert ignored == []
    assert refused == REFUSED[task]


REFUSED = {
    "ave": {
        "model.adapters.placement",  # here: no backbones to sit in
        "model.adapters.inject_from",
        "model.adapters.inject.frozen_train_mode",
        "model.adapters.inject.discard_frozen_audio",
        "model.adapters.avmoe.channel_rank",
        "schedule.step_epochs",
        "schedule.step_factor",
    },
    "ave-weak": {
        "model.head.topk_frames",
        "model.head.score_weight",
        "model.head.interaction",
        "model.head.squashed_gate",
    },
    "avvp": {"model.head.bounded_attention", "model.head.motion"},
    "avs-s4": set(),
    "avqa": set(),
}


@pytest.mark.parametrize("variant", ["reference", "revised"])
@pytest.mark.parametrize("recipe", ["lavish", "dg-sct"])
@pytest.mark.parametrize("task", TASKS.names())
def test_other_methods_learn_and_are_scored_in_every_task(task: str, recipe: str, variant: str) -> None:
    """In `reference` each with the oddities of the task's own published copy."""
    config = resolve_config(task, recipe, assignments=[f"model.variant={variant}", *small(task)])
    peer = getattr(config.model.adapters, recipe.replace("-", "_"))
    odd = COPIES[recipe.replace("-", "_")][peer.task_copy]
    assert all((getattr(peer, name) == value) == (variant == "reference") for name, value in odd.items())
    *_, found, (value, _) = seen(config)
    assert 0 <= value <= 100 and all(math.isfinite(x) for x in found)


@pytest.mark.parametrize(
    ("recipe", "part", "more", "refused"),
    [
        ("lavish", PEERS[0], [], {"channel_rank"}),
        ("dg-sct", PEERS[1], ["model.adapters.dg_sct.gamma=0.5"], {"channel_rank"}),
        ("probe", "model.probe.", [], {"hidden"}),
        ("probe-mlp", "model.probe.", [], set()),
    ],
)
def test_another_value_of_a_peer_or_probe_changes_something_or_is_refused(
    recipe: str, part: str, more: list[str], refused: set[str]
) -> None:
    base = ["model.variant=reference", *small("ave", *more)]
    config = resolve_config("ave", recipe, assignments=base)
    plain, ignored, found = list(seen(config)), [], set()
    for path, value in leaves(config.model_dump()):
        if not path.startswith(part) or path.endswith((".enabled", ".kind")):
            continue
        values = [["visual.stage1"]] if path.endswith(".taps") else others("ave", path, value)
        for other in values:
            try:
                if same(resolve_config("ave", recipe, assignments=base, options={path: other}), plain):
                    ignored.append(f"{path}={other} (now {value})")
            except CaeavError as refusal:
                assert path in str(refusal), refusal
                found.add(path.removeprefix(part))
    assert ignored == [] and found == refused


@pytest.mark.parametrize(("task", "path", "value", "base"), [
    ("ave", "model.adapters.avmoe.channel_rank", 2, ["model.adapters.avmoe.token_rank=2"]),
    ("ave", "schedule.step_factor", 0.9, ["schedule.name=step"]),
    ("ave", "schedule.step_epochs", 2, ["schedule.name=step"]),
    ("ave", "model.adapters.avmoe.latents", 3,
     ["model.adapters.avmoe.cross_experts=0", "model.adapters.avmoe.uni_attention=latent"]),
    ("ave", "model.adapters.avmoe.scaled_attention", False,
     ["model.adapters.avmoe.cross_experts=0", "model.adapters.avmoe.uni_attention=gated"]),
    ("avvp", "model.head.bounded_attention", False, ["model.head.own_seconds=false"]),
    ("ave", "model.head.squashed_gate", True, ["loss.gate=1"]),
    ("avvp", "model.head.gated_audio", False, ["model.head.gates=0.5"]),
    ("ave-weak", "model.head.visual_dropout", 0.9, ["model.head.context=false"]),
    ("avqa", "model.head.pad_index", 2, []),
])  # fmt: skip
def test_a_setting_has_an_effect_where_the_other_setting_allows_it(
    task: str, path: str, value: Any, base: list[str]
) -> None:
    assert changed(task, path, value, small(task, *base)) == (True, "")


@pytest.mark.parametrize(("task", "given", "why"), [
    ("ave", "model.adapters.avmoe.channel_rank=8", "model.adapters.avmoe.token_rank is 0"),
    ("ave", "model.adapters.inject_from=stage3", "placement is ladder; --inject-from STAGE sets both"),
    ("ave", "model.adapters.inject.frozen_train_mode=true", "placement is ladder"),
    ("ave", "model.adapters.ladder.rank=3 model.adapters.placement=inject", "placement is inject"),
    ("ave", "model.adapters.avmoe.latents=3 model.adapters.avmoe.cross_experts=0", "no expert has latents"),
    ("ave", "model.adapters.avmoe.uni_attention=gated model.adapters.avmoe.uni_experts=0", "uni_experts is 0"),
    ("ave", "model.adapters.avmoe.nonlinear_uni=false model.adapters.avmoe.uni_experts=0", "uni_experts is 0"),
    ("ave", "model.adapters.avmoe.scaled_attention=false model.adapters.avmoe.cross_experts=0",
     "no expert has an attention to scale"),
    ("ave", "model.adapters.avmoe.uniform_target=false", "loss.load_balance is 0"),
    ("ave", "schedule.step_epochs=7", "schedule.name is not step"),
    ("ave", "schedule.floor=0.5 schedule.name=none", "schedule.name is not cosine"),
    ("ave", "training.samples_per_clip=4", "a clip is one sample in this task"),
    ("ave", "stores.captions=mine captions=false model.adapters.case.enabled=false", "captions is false"),
    ("ave-weak", "model.head.gamma=0.5", "model.head.context is false"),
    ("ave-weak", "model.head.topk_frames=2", "the head for weak labels has no such part"),
    ("avvp", "model.head.bounded_attention=false", "own_seconds is true"),
    ("avvp", "loss.audio_keep=0.5 loss.audio=0", "loss.audio is 0"),
    ("ave", "model.head.squashed_gate=true loss.gate=0", "loss.gate is 0"),
    ("avvp", "model.head.gated_audio=false", "gates is 0"),
    ("ave", "model.adapters.lavish.task_copy=avs", "variant is revised, which follows none"),
    ("ave", "model.adapters.dg_sct.channel_rank=4", "model.adapters.dg_sct.token_rank is 0"),
    ("ave", "model.adapters.dg_sct.token_rank=4 model.adapters.dg_sct.context_map=resize", "no token map"),
    ("ave", "model.adapters.dg_sct.gate_first=true model.adapters.dg_sct.post_norm=false", "post_norm is false"),
    ("avvp", "loss.visual_keep=0.5 loss.visual=0", "loss.visual is 0"),
    ("avs-ms3", "loss.masked_kind=nearest", "loss.masked is 0"),
    ("avqa", "model.head.negatives=mixed", "loss.match is 0"),
    ("avqa", "model.head.pad_index=3 model.head.skip_padding=false", "skip_padding is false"),
])  # fmt: skip
def test_a_setting_without_effect_is_refused_with_the_reason(
    task: str, given: str, why: str, tmp_path: Path
) -> None:
    assignments = given.split(" ")
    path, _, value = assignments[0].partition("=")
    nested: Any = yaml.safe_load(value)
    shown = nested
    for name in reversed(path.split(".")):
        nested = {name: nested}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(nested))
    by_file = {"file": tmp_path / "mine.yaml", "assignments": assignments[1:]}
    for how in (
        {"assignments": assignments},
        by_file,
        {"assignments": assignments[1:], "options": {path: shown}},
    ):
        with pytest.raises(ConfigError) as caught:
            resolve_config(task, **how)  # type: ignore[arg-type]
        [fault] = caught.value.faults
        assert fault.startswith(f"{path}: ") and "has no effect, because " in fault and why in fault


def test_recipes_that_cannot_use_a_shared_setting_keep_their_own_value() -> None:
    options: dict[str, dict[str, Any]] = {name: {"dataset": "tiny"} for name in ("none", "case")}
    shared = ["stores.captions=mine", "training.epochs=3"]
    found = resolve_recipes("ave", ["none", "case"], None, shared, options)
    assert found["case"] == resolve_config("ave", "case", None, shared, options["case"])
    assert found["case"].stores.captions == "mine"
    # so that a run of the recipe that was trained without the setting is found again
    assert found["none"] == resolve_config("ave", "none", None, shared[1:], options["none"])


def test_a_shared_setting_that_no_recipe_can_use_is_refused_once() -> None:
    options: dict[str, dict[str, Any]] = {name: {} for name in ("none", "avmoe")}
    with pytest.raises(ConfigError) as caught:
        resolve_recipes("ave", ["none", "avmoe"], None, ["stores.captions=mine"], options)
    [fault] = caught.value.faults
    assert fault.startswith("stores.captions: 'mine' has no effect, because captions is false")


def test_faults_of_a_recipe_are_told_beside_its_settings_without_effect() -> None:
    options: dict[str, dict[str, Any]] = {name: {} for name in ("none", "case")}
    with pytest.raises(ConfigError) as caught:
        resolve_recipes("ave", ["none", "case"], None, ["stores.captions=mine", "training.epochs=0"], options)
    assert any(fault.startswith("training.epochs: ") for fault in caught.value.faults)


@pytest.mark.parametrize("task", TASKS.names())
def test_resolved_configurations_of_bundles_and_recipes_are_accepted(task: str, tmp_path: Path) -> None:
    """A run's resolved configuration names every setting; it opens, and `--config` accepts it."""
    for recipe in ("full", preset_names(task)[-1]):
        for bundle in ("variant=reference", "adapters.preset=lite"):
            config = resolve_config(task, recipe, assignments=[f"model.{bundle}"])
            path = tmp_path / f"{recipe}-{bundle}.yaml"
            path.write_text(dump_config(config))
            assert load_config(path) == config
            assert resolve_config(task, recipe, path) == config


def test_an_older_run_opens_with_settings_that_are_refused_now(tmp_path: Path) -> None:
    config = resolve_config("avvp")
    head = config.model.head.model_copy(update={"bounded_attention": False})
    rank = {"avmoe": config.model.adapters.avmoe.model_copy(update={"channel_rank": 3})}
    model = config.model.model_copy(
        update={"head": head, "adapters": config.model.adapters.model_copy(update=rank)}
    )
    old = config.model_copy(update={"model": model})
    (tmp_path / "config.yaml").write_text(dump_config(old))
    assert load_config(tmp_path / "config.yaml") == old
    with pytest.raises(ConfigError, match="2 faults"):
        resolve_config("avvp", "full", tmp_path / "config.yaml")


ELSEWHERE = {
    "seed": "test_train_steps.py::test_initial_weights_are_those_of_the_seed",
    "select_on": "test_train_steps.py::test_what_is_scored_at_the_end_are_the_weights_of_the_best_epoch",
    "protocol": "test_protocol.py::test_published_selects_and_averages_as_the_papers_and_says_so_everywhere",
    "drop_leaks": "test_protocol.py",
    "captions": "test_data_join.py::test_missing_captions_are_an_error_with_the_next_step",
    "stores.tokens": "test_data_join.py::test_of_several_stores_one_is_named_by_a_setting",
    "stores.captions": "test_data_join.py::test_a_clip_in_quarantine_of_any_joined_store_is_left_out",
    "stores.taps": "test_data_join.py::test_taps_come_in_the_order_of_the_recipe_from_shallow_to_deep",
    "stores.window_shards": "test_remote_training.py",
    "augment": "test_stress.py::test_augmented_training_data_are_those_of_the_configuration",
    "training.epochs": "test_train_steps.py::test_training_stops_after_so_many_epochs_without_gain",
    "training.early_stop_epochs": "test_train_steps.py::test_training_stops_after_so_many_epochs_without_gain",
    "training.batch_size": "test_train_steps.py::"
    "test_every_clip_of_a_step_weighs_the_same_even_in_a_ragged_last_step",
    "training.accumulation": "test_train_steps.py::"
    "test_every_clip_of_a_step_weighs_the_same_even_in_a_ragged_last_step",
    "training.samples_per_clip": "test_shared_clips.py",
    "training.clip_norm": "test_train_steps.py::test_gradients_are_clipped_to_the_configured_norm",
    "training.precision": "test_train_steps.py::"
    "test_precision_is_that_of_the_configuration_in_learning_and_in_scoring",
    "training.device": "test_train_loop.py::test_cuda_where_there_is_none_is_an_error",
    "training.workers": "test_data_join.py::test_batches_hold_the_right_clips_whatever_way_they_are_read",
    "training.preload_mb": "test_train_loop.py::test_reading_from_the_store_gives_what_reading_from_ram_gives",
    "training.checkpoint_every_steps": "test_train_resume.py::"
    "test_a_run_stopped_within_an_epoch_resumes_after_the_last_saved_step",
}
"""Settings of the run around the network, and the test that shows what each does."""


def test_every_setting_has_a_test_that_shows_its_effect() -> None:
    names = {path for path, _ in leaves(resolve_config().model_dump())} - {"task", "recipe", "dataset"}
    left = {
        path
        for path in names
        if not path.startswith(SECTIONS["ave"]) and not any(path.startswith(known) for known in ELSEWHERE)
    }
    assert left == set()
    for where in ELSEWHERE.values():
        file, _, name = where.partition("::")
        assert f"def {name}" in Path(__file__).with_name(file).read_text()
    assert all(math.isfinite(lr_factor(resolve_config().schedule, step, 2, 9)) for step in range(18))
