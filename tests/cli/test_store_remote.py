"""`caeav store push|pull|ls|verify` with addresses, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from s3_server import S3
from typer.testing import CliRunner, Result

from caeav.cli.app import build
from caeav.cli.stage import next_step, run_options, with_publishing
from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.store.testing_data import Toy, contents


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    made = Toy(tmp_path / "home/stores")
    made.write()
    return made


def run(*words: object) -> Result:
    return CliRunner().invoke(build(), [str(word) for word in words])


def test_a_store_is_pushed_and_pulled_back(toy: Toy, s3: S3, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    sent = run("store", "push", "toy", "s3://bucket/p", *home)
    url = f"s3://bucket/p/toy/{toy.folder.name}"
    assert sent.exit_code == 0 and sent.stdout == f"sent         3 shards, 38.9 kB\nstore        {url}\n"
    (again,) = json.loads(run("store", "push", toy.folder, "s3://bucket/p", "--json").stdout)
    assert again == {"url": url, "sent": 0, "there": 3, "bytes": 0}
    listed = run("store", "ls", "s3://bucket").stdout.splitlines()
    assert listed[1].split() == ["toy", toy.folder.name, "10", "10", "0", "38.9", "kB", "complete"]
    (info,) = json.loads(run("store", "ls", "s3://bucket", "--json").stdout)
    assert info["path"] == url and info["clips"] == 10
    brought = run("store", "pull", url, "--home", tmp_path / "other")
    folder = tmp_path / "other/stores/toy" / toy.folder.name
    assert brought.stdout == f"fetched      3 shards, 38.9 kB\nstore        {folder}\n"
    assert contents(folder) == contents(toy.folder)


def test_verify_of_an_address_says_what_is_wrong(toy: Toy, s3: S3, tmp_path: Path) -> None:
    run("store", "push", toy.folder, "s3://bucket")
    url = f"s3://bucket/toy/{toy.folder.name}"
    sound = run("store", "verify", url)
    assert sound.exit_code == 0 and sound.stdout.splitlines() == [
        url,
        "sound: 10 clips in 3 shards, 38.9 kB, 0 quarantined",
    ]
    s3.buckets["bucket"].pop(f"toy/{toy.folder.name}/shards/000001.tar")
    damaged = run("store", "verify", url)
    assert damaged.exit_code == 1 and "shards/000001.tar" in damaged.stdout
    assert "caeav store push from a sound store" in damaged.stderr and "store repair" not in damaged.output
    verified = json.loads(run("store", "verify", url, "--json").stdout)
    assert (verified["path"], verified["sound"], len(verified["problems"])) == (url, False, 1)
    mixed = run("store", "verify", url, "--media")
    assert isinstance(mixed.exception, CaeavError) and "--media" in str(mixed.exception)


def test_ls_of_an_address_without_stores_says_so(s3: S3) -> None:
    nothing = run("store", "ls", "s3://bucket/p")
    assert nothing.exit_code == 0 and "no store at s3://bucket/p" in nothing.stderr and not nothing.stdout


def test_an_address_to_publish_to_is_checked_before_any_work(s3: S3) -> None:
    options = run_options(1, 60.0, False, "10%")
    assert with_publishing(options, "s3://bucket//p/").publish == "s3://bucket/p"
    assert with_publishing(options, "") == options
    with pytest.raises(CaeavError, match="no address"):
        with_publishing(options, "bucket/p")


def test_the_next_command_repeats_an_address_as_it_was_typed() -> None:
    assert next_step("caption", "ave", Path("s3://bucket/AVE"), None).endswith("--root s3://bucket/AVE")
