"""`caeav train`: train adapters and a task head from stores, or resume an interrupted run, and print the scores."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caeav.cli import datasets
from caeav.cli.console import print_json, print_table, printable, say
from caeav.cli.options import (
    CacheBytesOption,
    HomeOption,
    JsonOption,
    TaskOption,
    TrainedOption,
    at_home,
    limit_cache,
    live_opener,
)
from caeav.cli.several import one_of_several, start_several
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.remembered import last_dataset
from caeav.model.tasks.datasets import mismatch_hint, task_for_dataset, task_from_labels
from caeav.pipeline.store import StoreReader, list_stores
from caeav.pipeline.store.recipe import MODALITIES
from caeav.pipeline.store.remote.url import Url, is_url, parse_url

if TYPE_CHECKING:
    from caeav.model.train.experiment import Experiment
    from caeav.model.train.loop import Watcher
    from caeav.model.train.processes import Processes
    from caeav.model.train.runs import Run


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(train)


def train(
    context: typer.Context,
    task: TaskOption = None,
    dataset: TrainedOption = None,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            help="full, avmoe, caste, case, none, audio or visual; other methods lavish, dg-sct, probe, probe-mlp; "
            "for avqa also question.",
        ),
    ] = "full",
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file laid over the recipe.", show_default=False)
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One value, e.g. optimiser.lr=0.0005; repeatable."),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", help="Train once for each, e.g. 0,1,2.", show_default="the recipe's"),
    ] = None,
    select_on: Annotated[
        str | None,
        typer.Option(
            "--select-on", help="Split that chooses the best epoch: val or test.", show_default="val"
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            help="honest, or published: select and score as the compared papers did; marks the run.",
            show_default="honest",
        ),
    ] = None,
    drop_leaks: Annotated[
        bool, typer.Option("--drop-leaks", help="Leave out clips whose video is in another split too.")
    ] = False,
    device: Annotated[
        str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:1.", show_default="auto")
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            "--devices",
            help="GPUs that share every batch, as 0,1 (cpu,cpu for two CPU processes): one process each.",
            show_default=False,
        ),
    ] = None,
    inject_from: Annotated[
        str | None,
        typer.Option(
            "--inject-from",
            metavar="STAGE",
            help="Adapters inside the live backbones from stage1 .. stage4 on, instead of beside the cached taps.",
            show_default=False,
        ),
    ] = None,
    cache_bytes: CacheBytesOption = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="RUN", help="Resume this run.", show_default=False)
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train adapters and a task head on cached tokens; without --inject-from no backbone is loaded, and never a
    decoder."""
    if devices is not None:
        start_several(devices, device)
    from caeav.model.train.groups import finished_group

    with one_of_several() as processes:
        place = Home.find(home)
        limit_cache(cache_bytes)
        changes = {
            "--dataset": dataset,
            "--config": config,
            "--set": assignments,
            "--seeds": seeds,
            "--select-on": select_on,
            "--protocol": protocol,
            "--drop-leaks": drop_leaks or None,
            "--inject-from": inject_from,
        }
        if resume is not None:
            given = [f"--{name}" for name in ("task", "recipe") if _typed(context, name)]
            given += [name for name, value in changes.items() if value]
            if given:
                raise CaeavError(
                    f"--resume continues with the run's own configuration; {', '.join(given)} cannot change it",
                    hint="leave them out, or train a new run without --resume",
                )
            result = _resume(place, resume, device, processes)
            _begin_rest(place, result["group"], device, processes)
            if processes.main:
                finish(finished_group(place, result["group"]) or [result], place, as_json)
            return
        dataset = choose_dataset(place, dataset, task, config, assignments or [])
        task = task or task_of(place, dataset)
        changes["--dataset"] = dataset
        dedicated = {
            "dataset": dataset,
            "select_on": select_on,
            "protocol": protocol,
            "drop_leaks": drop_leaks or None,
            "training.device": device,
            "model.adapters.placement": "inject" if inject_from else None,
            "model.adapters.inject_from": inject_from,
        }
        command = ["caeav", "train", "--task", task, "--recipe", recipe]
        for name, value in changes.items():
            for one in value if isinstance(value, list) else [value]:
                command += [] if one is None else [name] if one is True else [name, str(one)]
        results = _train_all(
            place,
            (task, recipe, config, assignments or [], {k: v for k, v in dedicated.items() if v is not None}),
            seed_list(seeds),
            shlex.join(command),
            processes,
        )
        if processes.main:
            finish(results, place, as_json)


def _typed(context: typer.Context, name: str) -> bool:
    """Whether an option was given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _train_all(
    home: Home,
    asked: tuple[str, str, Path | None, list[str], dict[str, Any]],
    seeds: list[int],
    command: str,
    processes: Processes,
) -> list[dict[str, Any]]:
    """Train one run per seed on the same joined data."""
    from caeav.model.train.config_file import resolve_config
    from caeav.model.train.experiment import prepare
    from caeav.model.train.runs import ORIGIN

    experiment = processes.together(
        lambda: prepare(home, resolve_config(*asked), live_opener(home), processes)
    )
    results: list[dict[str, Any]] = []
    group = ""
    for seed in seeds or [experiment.config.seed]:
        experiment = experiment.with_seed(seed)
        run = _new_run(home, experiment)
        if len(seeds) > 1 and not group:
            group = f"{run.name.removesuffix(f'-s{seed}')}-seeds-{'-'.join(map(str, seeds))}"
        if not results:
            _introduce(experiment)
        if processes.main:
            run.write(ORIGIN, {"command": command, "group": group, "seeds": seeds if group else []})
        try:
            results.append(_train_one(experiment, run))
        except KeyboardInterrupt:
            left = ", ".join(map(str, seeds[len(results) + 1 :]))
            if left:
                say(f"after it come the seeds not begun yet: {left}")
            raise
    return results


def _new_run(home: Home, experiment: Experiment) -> Run:
    """A run folder, made by the main process."""
    from caeav.model.train.runs import Run, create_run

    return Run(home.runs / experiment.processes.agree(lambda: create_run(home, experiment.config).name))


def _begin_rest(home: Home, group: str, device: str | None, processes: Processes) -> None:
    """Train the seeds of a group that have no run yet because of an interruption."""
    from caeav.model.train.experiment import reopen
    from caeav.model.train.groups import members
    from caeav.model.train.runs import ORIGIN, find_run

    def missing() -> dict[str, Any]:
        runs = members(home, group)
        origin = runs[0].origin() if runs else {}
        begun = {run.config().seed for run in runs}
        left = [seed for seed in origin.get("seeds", []) if seed not in begun]
        return {"run": runs[0].name if runs else "", "origin": origin, "seeds": left}

    rest = processes.agree(missing)
    if rest["seeds"]:
        first = find_run(home, rest["run"])
        experiment = processes.together(lambda: reopen(home, first, device, live_opener(home), processes))
    for seed in rest["seeds"]:
        run = _new_run(home, experiment.with_seed(seed))
        if processes.main:
            run.write(ORIGIN, rest["origin"])
        _train_one(experiment.with_seed(seed), run)


def _resume(home: Home, name: str, device: str | None, processes: Processes) -> dict[str, Any]:
    """Resume a run; a finished one is only printed."""
    from caeav.model.train.experiment import reopen
    from caeav.model.train.provenance import describe_environment, environment_differences
    from caeav.model.train.runs import ENVIRONMENT, find_run

    run = processes.together(lambda: find_run(home, name))
    result = processes.agree(run.result)
    if result is not None:
        say(f"run {run.name} is finished; nothing to do")
        return result
    experiment = processes.together(lambda: reopen(home, run, device, live_opener(home), processes))
    _introduce(experiment)
    if processes.main and (run.folder / ENVIRONMENT).exists():
        here = describe_environment(experiment.device, processes.count)
        changed = environment_differences(run.read(ENVIRONMENT), here)
        if changed:
            say(f"  note      numbers may differ from an uninterrupted run, since {'; '.join(changed)}")
    return _train_one(experiment, run)


def _train_one(experiment: Experiment, run: Run) -> dict[str, Any]:
    from caeav.model.train.log import MetricsLog, ProgressBar, TensorBoardLog
    from caeav.model.train.processes import LostProcessError, watching_others
    from caeav.model.train.runs import METRICS, TENSORBOARD
    from caeav.model.train.session import train as train_run

    samples, task = len(experiment.joined.splits["train"]), experiment.task
    watchers: list[Watcher] = [
        MetricsLog(run.folder / METRICS),
        TensorBoardLog(run.folder / TENSORBOARD),
        ProgressBar(samples, task.sample_noun, task.metric, experiment.config.select_on),
    ]
    watchers = watchers if experiment.processes.main else []
    say(f"  run       {run.folder}")
    further = f"caeav train --resume {run.name}{at_home(experiment.home)}"
    try:
        with watching_others():
            return train_run(experiment, run, watchers)
    except LostProcessError as error:
        raise LostProcessError(error.problem, hint=f"{error.hint}; then {further}") from error
    except KeyboardInterrupt:
        say(f"interrupted; continue with: {further}")
        raise


def _introduce(experiment: Experiment) -> None:
    """Print what is joined and trained, before training begins."""
    from caeav.model.train.card import introduction

    for line in introduction(experiment):
        say(printable(line))
    if experiment.processes.count > 1:
        say(f"  processes {experiment.processes.count}, which divide every batch among themselves")


def choose_dataset(
    home: Home, given: str | None, task: str | None, config: Path | None, assignments: list[str]
) -> str | None:
    """The data set to train on: the one named, else the last one; None where configuration or task name it."""
    if given is not None:
        return datasets.name(given, home)
    if address := _address_in(assignments):
        return address.parent.name
    if any(text.startswith("dataset=") for text in assignments) or (config and _names_dataset(config)):
        return None
    try:
        last = last_dataset(home)
    except CaeavError:
        if task is None:
            raise
        return None
    if task is not None and mismatch_hint(task, last):
        return None  # the task's own data set
    say(f"data set {last}, the one last extracted in {home.root}")
    return last


def _address_in(assignments: Sequence[str]) -> Url | None:
    """The first address among the token stores that `--set` names; its last folder but one is the data set's."""
    for text in assignments:
        name, _, value = text.partition("=")
        first = value.strip("[]\"' ").partition(",")[0].strip()
        if name.strip() == "stores.tokens" and is_url(first):
            return parse_url(first)
    return None


def _names_dataset(config: Path) -> bool:
    """Whether a configuration file names a data set; True too where it cannot be read, which is refused later."""
    import yaml

    try:
        value = yaml.safe_load(config.read_bytes()[:1_000_001])
    except (OSError, ValueError, yaml.YAMLError):
        return True
    return isinstance(value, dict) and "dataset" in value


def task_of(home: Home, dataset: str | None, address: Url | None = None) -> str:
    """The task a data set is labelled for (printed); raises `CaeavError` where it has no labels."""
    if dataset is None:
        return "ave"
    manifests = [info.path for info in list_stores(home.stores) if info.dataset == dataset]
    task = task_for_dataset(dataset)
    if not task and not manifests and address is None:
        return "ave"  # that there is no store is said where it is looked for
    if not task and address is not None:
        task = task_from_labels(_open_address(home, address).manifest)
    task = task or task_from_labels(StoreReader.open(manifests[-1], allow_partial=True).manifest)
    if not task:
        raise CaeavError(
            f"the clips of {dataset} have no labels, and without them there is nothing to train for",
            hint=f"give labels: caeav extract --dataset {dataset} --labels FILE or folders (docs/DATASETS.md); "
            "what is stored stays as it is",
        )
    say(f"task {task}, for which {dataset} is labelled")
    return task


def _open_address(home: Home, address: Url) -> StoreReader:
    from caeav.pipeline.store.remote.reading import open_remote

    name, _, modality = str(address).rpartition(":")
    return open_remote(name if modality in MODALITIES else str(address), home)


def seed_list(text: str | None) -> list[int]:
    """The seeds in a text such as `0,1,2`; raises `CaeavError`."""
    if text is None:
        return []
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise CaeavError(f"--seeds {text!r}", hint="give different whole numbers from 0 on: --seeds 0,1,2")
    return seeds


def finish(results: Sequence[dict[str, Any]], home: Home, as_json: bool) -> None:
    """Print the result of one run, or of several as a group, and the next commands."""
    from caeav.model.train.groups import summarise_group, write_group

    first = results[0]
    summary = summarise_group(first["group"], results) if len(results) > 1 else None
    if summary is not None:
        write_group(home, summary)
    if as_json:
        print_json(summary or first)
        return
    if summary is not None:
        print_group(summary)
        say(f"runs: {', '.join(summary['runs'])} in {home.runs}")
    else:
        _print_run(first)
        say(f"run: {home.runs / first['run']}")
    where = f"--run {first['run']}{at_home(home)}"
    question = ' --question "..."' if first["rows"] == "questions" else ""
    named = " ".join(str(result["run"]) for result in results)
    say(
        f"next: caeav predict FILE {where}{question}\n      caeav eval {where} --split test\n"
        f"      caeav report {named}{at_home(home)}"
    )


def print_group(summary: dict[str, Any]) -> None:
    """Print a group: mean, deviation and every seed's score per split."""
    print_table(
        ["split", f"{summary['metric']} %", "deviation", "majority %", "by seed"],
        [
            [
                _named(split, summary),
                spread["mean"],
                spread["std"],
                summary["majority"][split],
                " ".join(f"{value:.2f}" for value in spread["values"]),
            ]
            for split, spread in summary["scores"].items()
        ],
    )


def _print_run(result: dict[str, Any]) -> None:
    from caeav.model.tasks.bootstrap import format_interval
    from caeav.model.train.card import besides

    metric, scores = result["metric"], result["scores"]
    print_table(
        ["split", f"{metric} %", "interval", "majority %", result["rows"]],
        [
            [
                _named(split, result),
                value,
                format_interval(result["intervals"].get(split), metric),
                result["majority"][split],
                result["clips"][split],
            ]
            for split, value in scores.items()
        ],
    )
    names = list(next(iter(result["details"].values()), {}))
    if names:
        print()
        rows = [[name, *(result["details"][split][name] for split in scores)] for name in names]
        print_table(["also", *scores], rows)
    for line in besides(result):
        say(line)
    early = ", stopped early" if result["stopped_early"] else ""
    say(f"best epoch {result['best_epoch']} of {result['epochs']}{early}")


def _named(split: str, made: dict[str, Any]) -> str:
    """A split's name; test is marked where it was not scored honestly."""
    from caeav.model.train.protocol import HONEST, stamp

    stamped = stamp(made.get("protocol", HONEST), made["select_on"])
    return f"{split} ({stamped})" if split == "test" and stamped != HONEST else split
