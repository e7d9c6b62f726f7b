"""`--slice auto`: the slice of a task in a job array, from what batch systems put into the environment."""

from __future__ import annotations

import pytest

from caeav.cli import stage
from caeav.cli.job_array import slice_of_task
from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.store.slices import Slice


def slurm(index: object, first: object, last: object, count: object, step: object = 1) -> dict[str, str]:
    names = ("ID", "MIN", "MAX", "COUNT", "STEP")
    values = (index, first, last, count, step)
    return {f"SLURM_ARRAY_TASK_{n}": str(v) for n, v in zip(names, values, strict=True) if v is not None}


def sge(index: object, first: object, last: object, step: object = 1) -> dict[str, str]:
    names = ("ID", "FIRST", "LAST", "STEPSIZE")
    return {f"SGE_TASK_{n}": str(v) for n, v in zip(names, (index, first, last, step), strict=True)}


LSF = {"LSB_JOBINDEX": "3", "LSB_JOBINDEX_END": "8", "LSB_JOBINDEX_STEP": "1"}


@pytest.mark.parametrize(
    ("text", "environ", "wanted"),
    [
        ("auto", slurm(1, 1, 8, 8), Slice(1, 8)),
        ("auto", slurm(0, 0, 7, 8), Slice(1, 8)),
        ("auto", slurm(7, 0, 7, 8), Slice(8, 8)),
        ("auto", slurm(12, 10, 13, 4), Slice(3, 4)),
        ("auto", slurm(12, 10, None, 4, None), Slice(3, 4)),
        ("auto", LSF, Slice(3, 8)),
        ("auto", {"LSB_JOBINDEX": "3", "LSB_JOBINDEX_END": "8"}, Slice(3, 8)),
        ("auto", sge(5, 2, 9), Slice(4, 8)),
        ("auto", {**slurm(2, 1, 4, 4), "SGE_TASK_ID": "undefined", "LSB_JOBINDEX": "0"}, Slice(2, 4)),
        ("auto/8", {"PBS_ARRAY_INDEX": "3"}, Slice(3, 8)),
        ("auto/8", {"PBS_ARRAYID": "8"}, Slice(8, 8)),
        ("auto/8", slurm(5, 3, 5, 2, 2), Slice(5, 8)),
        ("auto/8", sge(5, 5, 5), Slice(5, 8)),
    ],
)
def test_the_slice_of_a_task(text: str, environ: dict[str, str], wanted: Slice) -> None:
    part, why = slice_of_task(text, environ)
    assert part == wanted
    index = next(name for name in environ if environ[name] not in ("0", "undefined") or "SLURM" in name)
    assert f"{index}={environ[index]}" in why


def test_the_tasks_of_an_array_make_every_slice_once() -> None:
    for first in (0, 1, 5):
        tasks = [slice_of_task("auto", slurm(first + i, first, first + 5, 6))[0] for i in range(6)]
        assert tasks == [Slice(number, 6) for number in range(1, 7)]


@pytest.mark.parametrize(
    ("text", "environ", "words"),
    [
        ("auto", {}, "no task of a job array; none of SLURM_ARRAY_TASK_ID, PBS_ARRAY_INDEX"),
        ("auto/4", {"SGE_TASK_ID": "undefined"}, "no task of a job array"),
        ("auto", {"LSB_JOBINDEX": "0", "LSB_JOBINDEX_END": "0"}, "no task of a job array"),
        ("auto", {**slurm(1, 1, 4, 4), "PBS_ARRAY_INDEX": "2"}, "several batch systems name a task"),
        ("auto", slurm(3, 1, 7, 4, 2), "SLURM_ARRAY_TASK_STEP=2: the array has gaps or a step"),
        ("auto", slurm(3, 1, 7, 3), "gaps"),
        ("auto", {**LSF, "LSB_JOBINDEX_STEP": "2"}, "a step other than 1"),
        ("auto", sge(3, 1, 7, 2), "a step other than 1"),
        ("auto", slurm(9, 1, 8, 8), "SLURM_ARRAY_TASK_ID=9.*outside of an array of 8 tasks that begins at 1"),
        ("auto", slurm(0, 1, 8, 8), "outside"),
        ("auto", {**LSF, "LSB_JOBINDEX": "9"}, "outside"),
        ("auto", slurm(3, 3, 3, 1), "an array of one task would make the whole store"),
        ("auto", slurm(3, 1, 8, None), "SLURM_ARRAY_TASK_COUNT is not set"),
        ("auto", slurm(3, None, 8, 8), "SLURM_ARRAY_TASK_MIN is not set"),
        ("auto", slurm("x3", 1, 8, 8), "SLURM_ARRAY_TASK_ID='x3' is not a whole number"),
        ("auto", slurm(-3, 1, 8, 8), "is not a whole number"),
        ("auto", {"PBS_ARRAY_INDEX": "3"}, "PBS does not say how many tasks the array has"),
        ("auto/8", {"PBS_ARRAY_INDEX": "0"}, "PBS_ARRAY_INDEX=0: outside of tasks numbered 1 to 8"),
        ("auto/8", {"PBS_ARRAY_INDEX": "9"}, "outside"),
        ("auto/0", {"PBS_ARRAY_INDEX": "0"}, "outside"),
        ("auto/x", slurm(1, 1, 8, 8), "'auto/x' is not a slice"),
        ("automatic", slurm(1, 1, 8, 8), "is not a slice"),
    ],
)
def test_an_unsuitable_array_is_refused(text: str, environ: dict[str, str], words: str) -> None:
    with pytest.raises(CaeavError, match=words) as refused:
        slice_of_task(text, environ)
    assert refused.value.hint


def test_a_run_says_which_slice_it_took(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in slurm(12, 10, 13, 4).items():
        monkeypatch.setenv(name, value)
    run = stage.run_options(1, 10.0, False, "50%", part="auto")
    assert run.part == Slice(3, 4)
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("slice 3/4, from SLURM_ARRAY_TASK_ID=12, SLURM_ARRAY_TASK_MIN=10")
    assert stage.run_options(1, 10.0, False, "50%", part="2/3").part == Slice(2, 3)
    assert stage.run_options(1, 10.0, False, "50%").part == Slice()
    assert capsys.readouterr() == ("", "")
