"""Stores in an object store: the same bytes after push and pull, in the order payload, index, seal; faults handled."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from other_servers import Azure, Google
from s3_server import S3, Fault

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.store import StoreReader, verify
from caeav.pipeline.store.errors import DamagedShard, DamagedStore, IncompleteStore, StoreError
from caeav.pipeline.store.remote import bucket, faults
from caeav.pipeline.store.remote.bucket import PART_BYTES, Bucket
from caeav.pipeline.store.remote.faults import AccessRefused, Different, ObjectGone, RemoteError, WrongBytes
from caeav.pipeline.store.remote.inspecting import list_remote, verify_remote
from caeav.pipeline.store.remote.pull import pull
from caeav.pipeline.store.remote.push import push
from caeav.pipeline.store.remote.reading import open_remote
from caeav.pipeline.store.remote.url import is_url, parse_url, url_of_path
from caeav.pipeline.store.testing_data import Toy, contents

URL = "s3://bucket/some/prefix"


@pytest.fixture(params=["webdataset", "zarr"])
def toy(request: pytest.FixtureRequest, tmp_path: Path) -> Toy:
    """A finished store of 10 clips in 3 shards, one clip quarantined."""
    made = Toy(tmp_path / "stores", request.param)
    made.write(failing=["clip005"])
    return made


@pytest.fixture
def tar(tmp_path: Path) -> Toy:
    """The same in the default format."""
    made = Toy(tmp_path / "stores")
    made.write(failing=["clip005"])
    return made


@pytest.fixture
def impatient(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests time out after half a second."""
    monkeypatch.setattr(faults, "PATIENCE", replace(faults.PATIENCE, timeout_s=0.5))


def address(toy: Toy) -> str:
    return f"{URL}/toy/{toy.folder.name}"


def objects_of(toy: Toy, s3: S3) -> dict[str, bytes]:
    """The store's objects by their names within the store."""
    prefix = address(toy).removeprefix("s3://bucket/") + "/"
    return {name.removeprefix(prefix): data for name, data in s3.objects().items()}


def test_a_store_pushed_and_pulled_has_the_same_bytes(toy: Toy, s3: S3, tmp_path: Path) -> None:
    sent = push(toy.folder, URL)
    assert (sent.url, sent.sent, sent.there) == (address(toy), 3, 0)
    held = contents(toy.folder)
    wanted = {name: data for name, data in held.items() if not name.startswith((".lock", "spare/"))}
    assert objects_of(toy, s3) == wanted
    told: list[int] = []
    done = pull(sent.url, tmp_path / "other", told.append)
    assert (done.came, done.there, sum(told)) == (3, 0, done.bytes)
    assert contents(done.path) == held and verify(done.path).sound
    again = pull(sent.url, tmp_path / "other")
    assert (again.came, again.there) == (0, 3)


@pytest.fixture(params=[Google, Azure])
def other(
    request: pytest.FixtureRequest, tmp_path: Path, needs: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """A server that speaks as Google's or Azure's do."""
    needs("obstore")
    monkeypatch.setattr(faults, "PATIENCE", faults.Patience(4, 0.005, 0.02, 20.0))
    monkeypatch.setattr(bucket, "_plain_http", lambda: True)
    with request.param() as server:
        account = {"gcs_base_url": server.endpoint, "disable_oauth": True, "private_key": "a-secret"}
        (tmp_path / "account.json").write_text(
            json.dumps({**account, "client_email": "", "private_key_id": ""})
        )
        google = {"GOOGLE_SERVICE_ACCOUNT": str(tmp_path / "account.json")}
        for name, value in (google if isinstance(server, Google) else server.environment()).items():
            monkeypatch.setenv(name, value)
        yield server


def test_the_same_with_the_requests_of_google_and_azure(tar: Toy, other: Any, tmp_path: Path) -> None:
    """There and back, puts if absent, a listing of several pages, faults that pass and that stay, replacing."""
    other.faults = [Fault(503, "PUT", r"\.tar$", after=1), Fault("truncate", "GET", r"\.tar$")]
    sent = push(tar.folder, other.url)
    assert (sent.sent, push(tar.folder, other.url).there) == (3, 3)
    (info,) = list_remote(other.url).values()
    assert info.state == "complete" and verify_remote(sent.url).sound
    assert contents(pull(sent.url, tmp_path / "there").path) == contents(tar.folder)
    grown = Toy(tmp_path / "grown")
    grown.write(grown.manifest(12))
    with pytest.raises(Different):
        push(grown.folder, other.url)
    push(grown.folder, other.url, replace=True)
    assert contents(pull(sent.url, tmp_path / "again").path) == contents(grown.folder)
    assert not any(fault.times for fault in other.faults)
    other.faults = [Fault(403, "GET", times=1000)]
    with pytest.raises(AccessRefused, match=rf"^{sent.url}/\S+: access is refused: 403") as refused:
        pull(sent.url, tmp_path / "refused")
    assert "renew the credentials" in refused.value.hint and "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "given", "says"),
    [
        ("az://container/x", {}, r"Account must be specified\n.*AZURE_STORAGE_ACCOUNT_NAME"),
        (
            "az://container/x",
            {"AZURE_STORAGE_ACCOUNT_NAME": "a", "AZURE_STORAGE_ACCOUNT_KEY": "no key!"},
            r"Invalid Access Key.*\n.*AZURE_STORAGE_ACCOUNT_KEY",
        ),
        (
            "gs://bucket/x",
            {"GOOGLE_APPLICATION_CREDENTIALS": "/nowhere.json"},
            r"service account file.*\n.*GOOGLE_APPLICATION_CREDENTIALS \(a file\)",
        ),
    ],
)
def test_credentials_that_are_none_are_told_at_once(
    url: str, given: dict[str, str], says: str, needs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request is sent, and none is tried again."""
    needs("obstore")
    for name in [name for name in os.environ if name.startswith(("AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(faults.Patience, "wait", lambda *_: pytest.fail("it is tried again"))
    with pytest.raises(RemoteError, match=f"^{url}: there are no credentials that can be used: .*{says}"):
        Bucket(url).list()


def test_push_sends_payload_first_then_the_index_and_the_seal_last(toy: Toy, s3: S3) -> None:
    push(toy.folder, URL)
    puts = [key.partition(f"{toy.folder.name}/")[2] for method, key in s3.seen if method == "PUT"]
    assert puts[0] == "recipe.json" and puts[-1] == "complete.json"
    for number in range(3):
        files = StoreReader.open(toy.folder)._indexes[number].files
        assert max(puts.index(facts.name) for facts in files) < puts.index(f"index/00000{number}.idx")


def test_objects_already_there_are_not_sent_again(toy: Toy, s3: S3) -> None:
    push(toy.folder, URL)
    s3.seen.clear()
    again = push(toy.folder, URL)
    assert (again.sent, again.there, again.bytes) == (0, 3, 0)
    assert not [key for method, key in s3.seen if method == "PUT" and "/shards" in key and "json" not in key]


def test_a_push_interrupted_at_any_put_continues_to_the_same_objects(tar: Toy, s3: S3) -> None:
    """At no point is there an index without its whole shard, or a seal without everything."""
    push(tar.folder, URL)
    wanted, puts = objects_of(tar, s3), s3.requests["PUT"]
    files = {i.number: i.files[0] for i in StoreReader.open(tar.folder)._indexes.values()}
    for stop in range(puts):
        s3.clear()
        s3.faults = [Fault(403, "PUT", times=1000, after=stop)]
        with pytest.raises(AccessRefused, match=re.escape(URL)):
            push(tar.folder, URL)
        there = objects_of(tar, s3)
        assert "complete.json" not in there
        for number, facts in files.items():
            if f"index/00000{number}.idx" in there:
                assert there[facts.name] == wanted[facts.name]
        with pytest.raises((IncompleteStore, StoreError)):
            open_remote(address(tar), Home(tar.stores.parent))
        s3.faults.clear()
        push(tar.folder, URL)
        assert objects_of(tar, s3) == wanted


PUSH = """
import sys; from pathlib import Path; from caeav.pipeline.store.remote.push import push
push(Path(sys.argv[1]), sys.argv[2])
"""


def test_a_push_killed_between_payload_and_index_loses_nothing(tar: Toy, s3: S3) -> None:
    s3.faults = [Fault("late", "PUT", r"index/", times=9, seconds=20.0)]
    child = subprocess.Popen([sys.executable, "-c", PUSH, str(tar.folder), URL])
    deadline = time.monotonic() + 60
    while (
        not any("index/" in key for method, key in s3.seen if method == "PUT") and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    s3.faults.clear()
    there = objects_of(tar, s3)
    assert "shards/000000.tar" in there and "complete.json" not in there
    assert not verify_remote(address(tar)).finished
    push(tar.folder, URL)
    assert verify_remote(address(tar)).sound


FAULTS: list[tuple[int | str, type[RemoteError], str]] = [
    (500, RemoteError, "500 Internal Server Error"),
    (503, RemoteError, "503 Service Unavailable SlowDown"),
    ("late", RemoteError, "no answer in time"),
    ("slow", RemoteError, "no answer in time"),
    ("truncate", RemoteError, "broke off"),
    ("wrong", WrongBytes, "sha256"),
    (404, ObjectGone, "no such object"),
    (400, AccessRefused, "ExpiredToken"),
    (403, AccessRefused, "AccessDenied"),
]


@pytest.mark.parametrize("kind", [kind for kind, _, _ in FAULTS])
def test_a_temporary_fault_is_retried(
    kind: int | str, tar: Toy, s3: S3, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind in ("late", "slow"):
        request.getfixturevalue("impatient")
    push(tar.folder, URL)
    s3.faults = [Fault(kind, "GET", r"\.tar$", times=1), Fault(kind, "GET", r"\.idx$", times=1)]
    if kind == 404:
        s3.faults.pop()  # a missing small file is not retried
    store = open_remote(address(tar), Home(tmp_path / "home"))
    assert [tar.same(record) for record in store] == [True] * 9
    assert not any(fault.times for fault in s3.faults)


@pytest.mark.parametrize(("kind", "error", "says"), FAULTS)
def test_a_permanent_fault_is_an_error_and_never_data(
    kind: int | str,
    error: type[RemoteError],
    says: str,
    tar: Toy,
    s3: S3,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if kind in ("late", "slow"):
        request.getfixturevalue("impatient")
    push(tar.folder, URL)
    store = open_remote(address(tar), Home(tmp_path / "home"))
    s3.faults = [Fault(kind, "GET", r"000001\.tar$", times=1000, seconds=1.2)]
    seen = []
    with pytest.raises(error, match=says) as raised:
        for key in store.keys:
            seen.append(store.read(key))
    assert len(seen) == 4 and all(map(tar.same, seen))
    assert f"{address(tar)}/shards/000001.tar" in raised.value.problem and raised.value.hint
    attempts = 3 if kind == "wrong" else 4
    assert 1000 - s3.faults[0].times == attempts, "retries are bounded"
    assert "a-secret" not in str(raised.value) and "AKIATEST" not in str(raised.value)
    s3.faults.clear()
    assert all(map(tar.same, store)), "the same reader must work once the fault has passed"


def test_an_object_that_vanishes_is_an_error(tar: Toy, s3: S3, tmp_path: Path) -> None:
    push(tar.folder, URL)
    store = open_remote(address(tar), Home(tmp_path / "home"))
    s3.faults = [Fault("vanish", "GET", r"000002\.tar$")]
    with pytest.raises(ObjectGone, match=r"000002\.tar"):
        store.read("clip009")
    with pytest.raises(
        DamagedShard, match=re.escape(f"{address(tar)}/shards/000002.tar: the file is missing")
    ):
        open_remote(address(tar), Home(tmp_path / "other"))


@pytest.mark.parametrize("name", ["complete.json", "recipe.json", "manifest.jsonl", "index/000001.idx"])
def test_changed_small_files_are_refused(name: str, tar: Toy, s3: S3, tmp_path: Path) -> None:
    push(tar.folder, URL)
    key = f"{address(tar).removeprefix('s3://bucket/')}/{name}"
    held = s3.objects()[key]
    for damaged in (held[: len(held) // 2], held[:-9] + bytes([held[-9] ^ 4]) + held[-8:]):
        s3.put(key, damaged)
        with pytest.raises((DamagedStore, WrongBytes), match=re.escape(address(tar))):
            open_remote(address(tar), Home(tmp_path / "home"))
        with pytest.raises((DamagedStore, WrongBytes, StoreError)):
            pull(address(tar), tmp_path / "pulled")
        assert not list((tmp_path / "pulled").rglob("complete.json"))


def test_renewed_credentials_are_used(tar: Toy, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a refusal a new client is made, which reads the environment again."""
    bucket = Bucket(URL)
    bucket.put("a", b"1")
    first = bucket._store
    s3.faults = [Fault(400, "GET", "a$")]
    assert bucket.read("a") == b"1"
    assert bucket._store is not first


def test_a_put_whose_response_is_lost_does_no_harm(s3: S3) -> None:
    """The object was written but the response is 500: the second attempt finds it and compares its bytes."""
    bucket = Bucket(URL)
    s3.faults = [Fault("lost", "PUT")]
    assert bucket.create("index", b"one") is False
    assert bucket.create("index", b"one") is False
    with pytest.raises(Different, match=f"{URL}/index: other bytes"):
        bucket.create("index", b"two")
    assert bucket.read("index") == b"one"


def test_large_objects_are_fetched_in_parts_that_are_retried_separately(s3: S3, tmp_path: Path) -> None:
    import hashlib

    data = os.urandom(PART_BYTES * 3 + 5)
    (tmp_path / "large").write_bytes(data)
    bucket = Bucket(URL, patience=None)
    s3.put("some/prefix/large", data)
    s3.faults = [Fault(500, "GET", "large", times=2), Fault("truncate", "GET", "large", after=1)]
    out = bytearray(len(data))

    def write(at: int, part: bytes) -> None:
        out[at : at + len(part)] = part

    bucket.fetch("large", len(data), hashlib.sha256(data).hexdigest(), write)
    assert out == data and s3.requests["GET"] == 4 + 3


def test_another_state_of_the_store_is_replaced_only_on_request(tar: Toy, s3: S3) -> None:
    push(tar.folder, URL)
    before = objects_of(tar, s3)
    tar.write(tar.manifest(13), retry_failed=True)
    with pytest.raises(Different, match="another state of this store") as raised:
        push(tar.folder, URL)
    assert "--replace" in raised.value.hint and objects_of(tar, s3) == before
    s3.seen.clear()
    push(tar.folder, URL, replace=True)
    changes = [(m, k.rpartition("/")[2]) for m, k in s3.seen if m == "PUT" or (m == "POST" and "delete" in k)]
    assert changes[-1] == ("PUT", "complete.json")
    assert verify_remote(address(tar)).sound
    assert verify_remote(address(tar)).stored == 13


def test_a_damaged_or_unfinished_store_is_not_published(tar: Toy, s3: S3) -> None:
    shard = tar.folder / "shards/000001.tar"
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedShard, match="not the bytes that its index says"):
        push(tar.folder, URL)
    assert "complete.json" not in objects_of(tar, s3) and "shards/000001.tar" not in objects_of(tar, s3)
    (tar.folder / "complete.json").unlink()
    with pytest.raises(IncompleteStore):
        push(tar.folder, URL)


def test_verify_lists_changed_missing_and_stray_objects(tar: Toy, s3: S3) -> None:
    push(tar.folder, URL)
    prefix = address(tar).removeprefix("s3://bucket/")
    held = s3.objects()
    s3.put(f"{prefix}/shards/000000.tar", held[f"{prefix}/shards/000000.tar"][:-1] + b"x")
    s3.buckets["bucket"].pop(f"{prefix}/shards/000001.tar")
    s3.put(f"{prefix}/shards/000009.tar", b"stray")
    told: list[int] = []
    verified = verify_remote(address(tar), told.append)
    assert {p.where: p.what.partition(" is ")[0] for p in verified.problems} == {
        "shards/000000.tar": "sha256",
        "shards/000001.tar": "the file",  # is missing
        "shards/000009.tar": "does not belong to the finished store",
    }
    assert not verified.sound and sum(told) > 0
    s3.buckets["bucket"].pop(f"{prefix}/shards/000000.tar")  # as the message says
    s3.buckets["bucket"].pop(f"{prefix}/shards/000009.tar")
    assert push(tar.folder, URL).sent == 2
    assert verify_remote(address(tar)).sound


def test_stores_below_an_address_are_listed(tar: Toy, s3: S3) -> None:
    push(tar.folder, URL)
    (info,) = list_remote("s3://bucket").values()
    assert (info.dataset, info.state, info.clips, info.quarantined) == ("toy", "complete", 9, 1)
    for place in (URL, f"{URL}/toy", address(tar)):
        assert list_remote(place) == {address(tar): info}
    s3.buckets["bucket"].pop(f"{address(tar).removeprefix('s3://bucket/')}/complete.json")
    (info,) = list_remote(URL).values()
    assert info.state == "partial"
    assert list_remote("s3://elsewhere") == {}


def test_an_interrupted_pull_continues_and_another_state_is_not_overwritten(
    tar: Toy, s3: S3, tmp_path: Path
) -> None:
    push(tar.folder, URL)
    held, other = contents(tar.folder), tmp_path / "other"
    s3.faults = [Fault("wrong", "GET", r"000001\.tar$", times=100)]
    with pytest.raises(WrongBytes):
        pull(address(tar), other)
    folder = other / "toy" / tar.folder.name
    assert not (folder / "complete.json").exists() and not (folder / "shards/000001.tar").exists()
    with pytest.raises(IncompleteStore):
        StoreReader.open(folder)
    s3.faults.clear()
    pull(address(tar), other)
    assert contents(folder) == held
    (folder / "complete.json").write_bytes(held["complete.json"] + b"\n")
    with pytest.raises(StoreError, match="another state"):
        pull(address(tar), other)


def test_a_local_folder_is_an_address_too(toy: Toy, needs: Any, tmp_path: Path) -> None:
    needs("obstore")
    url = f"file://{tmp_path / 'far'}"
    sent = push(toy.folder, url)
    assert sent.url == f"{url}/toy/{toy.folder.name}" and push(toy.folder, url).sent == 0
    store = open_remote(sent.url, Home(tmp_path / "home"))
    assert all(map(toy.same, store)) and len(store) == 9
    assert verify_remote(sent.url).sound
    assert contents(pull(sent.url, tmp_path / "pulled").path) == contents(toy.folder)


@pytest.mark.parametrize(
    "text",
    ["http://host/x", "s3://user:pass@bucket/x", "s3://bucket/x?sig=abc", "s3://", "s3://b/../c", "gs:x"],
)
def test_addresses_with_credentials_or_of_other_schemes_are_refused(text: str) -> None:
    with pytest.raises(CaeavError) as raised:
        parse_url(text)
    assert "pass" not in str(raised.value) and "abc" not in str(raised.value)


def test_addresses_are_normalised_and_recognised() -> None:
    assert str(parse_url("s3://bucket//a/b/")) == "s3://bucket/a/b"
    assert str(parse_url("file:///a/b")) == "file:///a/b"
    assert url_of_path(Path("s3://bucket/AVE")) == "s3://bucket/AVE" and url_of_path(Path("a/b")) == ""
    assert is_url("s3://b/x") and not is_url("a/b") and not is_url("tokens:visual")


def test_an_unknown_profile_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, needs: Any) -> None:
    needs("obstore")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(CaeavError, match="AWS_PROFILE names a profile") as raised:
        Bucket(URL).read("a")
    assert raised.value.hint


def test_motos_s3_server_accepts_the_same_requests(toy: Toy, s3: S3, needs: Any, tmp_path: Path) -> None:
    """An independent server: conditional puts, parts, listings, removals."""
    needs("boto3")
    needs("moto")
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", endpoint)
            boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="bucket")
            assert push(toy.folder, URL).sent == 3 and push(toy.folder, URL).sent == 0
            assert contents(pull(address(toy), tmp_path / "pulled").path) == contents(toy.folder)
            toy.write(toy.manifest(13), retry_failed=True)
            with pytest.raises(Different):
                push(toy.folder, URL)
            push(toy.folder, URL, replace=True)
            assert all(map(toy.same, open_remote(address(toy), Home(tmp_path / "home"))))
    finally:
        server.stop()


def test_no_remote_library_is_imported_by_default() -> None:
    code = (
        "import sys, caeav.cli.app as a; a.build(); import caeav.pipeline.store, caeav.model.train.experiment;"
        "print([m for m in ('obstore', 'boto3') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_obstore_is_an_error_with_a_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(CaeavError, match=r"pip install 'caeav\[remote\]'"):
        Bucket(URL)
