"""What every store promises, on a disk and in a bucket."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from bucket_server import BUCKET, VARIABLES, Bucket
from saved_checkpoints import history, save

from fgseg.checkpoints.checkpoint import Checkpoints, newest_checkpoint
from fgseg.config.errors import ConfigError
from fgseg.results import SupersededError
from fgseg.storage import s3
from fgseg.storage.s3 import ObjectStoreError
from fgseg.storage.store import Store, absolute, check_store, join, local_files, open_store


@pytest.fixture(params=["disk", pytest.param("bucket", marks=pytest.mark.server)])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place of either kind that holds nothing."""
    if request.param == "disk":
        return str(tmp_path / "place")
    bucket: Bucket = request.getfixturevalue("bucket")
    return bucket.address(tmp_path.name)


@pytest.fixture
def store(address: str) -> Store:
    return open_store(address)


@contextmanager
def server_that_answers(codes: Iterator[int], port: int = 0) -> Iterator[str]:
    """The address of a bucket on a server that answers every request with the next code; without end, the last."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(next(codes))
            self.send_header("Content-Length", "0")
            self.send_header("ETag", '"0"')
            self.end_headers()

        do_GET = do_HEAD = do_PUT = do_POST = answer

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"s3://{BUCKET}/runs?endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=us-east-1"
    finally:
        server.shutdown()
        server.server_close()


def forever(code: int) -> Iterator[int]:
    while True:
        yield code


def test_blob_is_read_as_it_was_written_last(store: Store):
    for data in (b"first", b"", b"x" * 300_000):
        store.put("a", data)
        assert store.get("a") == data


def test_missing_blob_is_told_as_a_missing_file(store: Store):
    store.put("a", b"1")
    with pytest.raises(FileNotFoundError):
        store.get("b")


def test_store_that_nobody_wrote_to_is_empty(store: Store):
    assert (store.list(), store.folders(), store.sizes()) == ([], [], {})


def test_names_are_listed_by_level_and_sizes_of_all_levels(store: Store):
    for name, data in (("b", b"22"), ("a", b"1"), ("deep/er/c", b"333")):
        store.put(name, data)
    assert store.list() == ["a", "b"]
    assert store.folders() == ["deep"]
    assert store.sizes() == {"a": 1, "b": 2, "deep/er/c": 3}
    assert store.get("deep/er/c") == b"333"


def test_deleted_blob_is_gone_and_deleting_it_again_is_no_error(store: Store):
    store.put("a", b"1")
    store.delete("a")
    store.delete("a")
    assert store.list() == []


def test_clearing_removes_all_that_is_below_and_nothing_beside(address: str):
    below, beside = open_store(join(address, "one")), open_store(join(address, "one-more"))
    for name in ("a", "deep/b"):
        below.put(name, b"1")
        beside.put(name, b"1")
    below.clear()
    below.clear()
    assert (below.sizes(), beside.sizes().keys()) == ({}, {"a", "deep/b"})


def test_clearing_keeps_what_begins_with_a_name(store: Store):
    for name in ("study.db", "study.db-journal", "trials/0/a", "report"):
        store.put(name, b"1")
    store.clear(keep="study.db")
    assert store.sizes().keys() == {"study.db", "study.db-journal"}


def test_blobs_are_read_as_the_files_of_a_folder(address: str):
    for name, data in (("report/index.html", b"hello"), ("report/pictures/a.png", b"png"), ("other", b"")):
        open_store(address).put(name, data)
    with local_files(join(address, "report")) as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["index.html", "pictures"]
        assert (folder / "index.html").read_text() == "hello"
        assert (folder / "pictures" / "a.png").read_bytes() == b"png"


def test_blob_is_on_the_disk_when_the_call_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[Path] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").resolve()))
    (tmp_path / "study").mkdir()
    open_store(tmp_path / "study" / "trials" / "3").put("name", b"content")
    content, *folders = synced
    assert content.name.endswith(".tmp")
    names = [tmp_path / "study" / "trials" / "3", tmp_path / "study" / "trials", tmp_path / "study"]
    assert folders == names  # the file's name, and those of the new folders


def test_checkpoint_exists_once_its_manifest_does(store: Store):
    checkpoints = Checkpoints(store, attempt=1)
    for k in (1, 2, 3):
        save(checkpoints, k)
    store.delete("checkpoint-000001-000003.json")
    checkpoint = newest_checkpoint(store)
    assert checkpoint is not None
    assert [e.to_json() for e in checkpoint.manifest.history] == [e.to_json() for e in history(2)]


def test_superseded_attempt_cannot_write(store: Store):
    old = Checkpoints(store, attempt=1)
    Checkpoints(store, attempt=2)
    before = store.sizes()
    with pytest.raises(SupersededError, match="attempt 1 of this trial was superseded by attempt 2"):
        save(old, 1)
    assert store.sizes() == before


def test_address_of_what_lies_below_keeps_its_query():
    assert join("s3://b/runs/?region=x", "s", "trials") == "s3://b/runs/s/trials?region=x"
    assert join("s3://b", "s") == "s3://b/s"
    assert absolute("s3://b/runs/?region=x") == "s3://b/runs?region=x"
    assert join("/runs", "s", "trials") == "/runs/s/trials"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://key:secret@b/x", "an s3:// address holds no credentials; set AWS_ACCESS_KEY_ID"),
        ("s3:///x", "s3:///x names no bucket; give s3://bucket/prefix"),
        ("s3://b/x?colour=red", "s3://b: no option 'colour'; there are: endpoint_override, scheme, region"),
        ("gs://b/x", "gs:// is an unknown kind of storage; give a path or s3://bucket/prefix"),
    ],
)
def test_unfit_address_is_told(address: str, message: str):
    with pytest.raises(ConfigError, match=f"^--storage: {message}") as told:
        check_store(address, "--storage")
    assert "secret" not in str(told.value)


@pytest.mark.server
def test_bucket_that_does_not_exist_is_told(bucket: Bucket):
    with pytest.raises(ConfigError, match=r"^--storage: there is no bucket nowhere; create it first$"):
        check_store(bucket.address("runs").replace(BUCKET, "nowhere"), "--storage")


def test_bucket_that_is_forbidden_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch):
    set_variables(monkeypatch)
    with server_that_answers(forever(403)) as address:
        with pytest.raises(ConfigError, match=r"^--storage: bucket studies cannot be used \(.*ACCESS_DENIED.*") as told:
            check_store(address, "--storage")
        with pytest.raises(ObjectStoreError, match="ACCESS_DENIED"):
            open_store(address).put("a", b"1")
        with pytest.raises(ObjectStoreError) as nested:
            open_store(address).clear(keep="a")
    assert "\n" not in str(told.value)
    assert str(nested.value).count("the object store fails") == 1


def test_fault_of_the_server_that_passes_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    set_variables(monkeypatch)
    answers = iter([503] * 7 + [200] * 9)  # for 3 s
    with server_that_answers(answers) as address:
        open_store(address).put("a", b"1")
    assert len(list(answers)) < 9


def test_server_that_restarts_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    set_variables(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = open_store(f"s3://{BUCKET}/runs?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1")
    with ThreadPoolExecutor(1) as thread:
        put = thread.submit(store.put, "a", b"1")
        time.sleep(2)  # nothing listens at the port
        assert not put.done()
        with server_that_answers(forever(200), port):
            assert put.exception(timeout=60) is None


def test_requests_are_retried_for_a_minute():
    pauses_s = [0.025 * 2**n for n in range(1, s3.RETRIES)]  # AwsDefaultS3RetryStrategy; the first retry is immediate
    assert 45 < sum(pauses_s) < 60


def test_fault_of_the_server_that_stays_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch):
    set_variables(monkeypatch)
    monkeypatch.setattr(s3, "RETRIES", 2)
    message = r"^the object store fails: .*(SERVICE_UNAVAILABLE|SLOW_DOWN|503)"
    with server_that_answers(forever(503)) as address, pytest.raises(ObjectStoreError, match=message):
        open_store(address).get("a")


def set_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials that no server checks."""
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


def test_reader_of_a_file_reads_the_old_blob_to_its_end(tmp_path: Path):
    """A new blob is a new file under the same name: nothing is written into the old one."""
    store = open_store(str(tmp_path))
    store.put("blob", b"old" * 1000)
    with (tmp_path / "blob").open("rb") as reader:
        store.put("blob", b"new")
        assert reader.read() == b"old" * 1000
    assert store.get("blob") == b"new"
