"""A small S3 server on the loopback address that can inject the faults of real object stores.

It keeps objects in memory and supports GET with ranges, HEAD, PUT with `If-None-Match: *`, DELETE, paged listing
(`ListObjectsV2`) and multipart uploads; it checks no signature. All responses can be late (`latency_s`) or slow
(`bytes_per_s`); a `Fault` applies to the requests it matches.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

PAGE = 1000
ERRORS = {
    500: "InternalError",
    503: "SlowDown",
    403: "AccessDenied",
    400: "ExpiredToken",
    404: "NoSuchKey",
    412: "PreconditionFailed",
}


@dataclass
class Fault:
    """What happens to the next `times` requests of `method` whose key matches `key` (a regular expression).

    kind: an HTTP status; `late` (the response comes after `seconds`), `slow` (the body takes `seconds`), `truncate`
    (the body breaks off), `wrong` (one byte of the body is changed), `lost` (done, but the response is 500), `vanish`
    (the object is removed). The first `after` matching requests are left alone.
    """

    kind: int | str
    method: str = "GET"
    key: str = "."
    times: int = 1
    seconds: float = 2.0
    after: int = 0


@dataclass
class S3:
    """Buckets by name, each key -> bytes; `requests` counts by method, `faults` are still to happen."""

    buckets: dict[str, dict[str, tuple[bytes, float]]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)
    seen: list[tuple[str, str]] = field(default_factory=list)
    latency_s: float = 0.0
    bytes_per_s: float = 0.0
    handler: ClassVar[Any] = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)

    def __enter__(self) -> S3:
        handler = type("Handler", (self.handler or _Handler,), {"s3": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def clear(self) -> None:
        """Remove all objects, faults and recorded requests."""
        with self.lock:
            for recorded in (self.buckets, self.faults, self.requests, self.seen, self.uploads):
                recorded.clear()
            self.latency_s = self.bytes_per_s = 0.0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self) -> dict[str, str]:
        """The environment variables with which a client finds this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "AKIATESTKEYOFNOBODY",
            "AWS_SECRET_ACCESS_KEY": "a-secret-that-no-file-may-hold",
            "AWS_REGION": "us-east-1",
        }

    def objects(self, bucket: str = "bucket") -> dict[str, bytes]:
        with self.lock:
            return {key: data for key, (data, _) in sorted(self.buckets.get(bucket, {}).items())}

    def put(self, key: str, data: bytes, bucket: str = "bucket") -> None:
        with self.lock:
            self.buckets.setdefault(bucket, {})[key] = (data, time.time())

    def fault(self, method: str, key: str) -> Fault | None:
        """The fault that applies to this request, if any; its counters go down."""
        with self.lock:
            for one in self.faults:
                if one.times and one.method in (method, "*") and re.search(one.key, key):
                    if one.after:
                        one.after -= 1
                        continue
                    one.times -= 1
                    return one
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    s3: S3

    def log_message(self, *_: object) -> None:
        return

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        s3, method = self.s3, self.command
        with s3.lock:
            s3.requests[method] += 1
            s3.seen.append((method, key))
        if s3.latency_s:
            time.sleep(s3.latency_s)
        fault = s3.fault(method, key)
        kind = fault.kind if fault else None
        if isinstance(kind, int):
            self._error(kind)
            return
        if kind == "late" and fault:
            time.sleep(fault.seconds)
        with s3.lock:
            objects = s3.buckets.setdefault(bucket, {})
            if kind == "vanish":
                objects.pop(key, None)
            status, headers, data = self._answer(objects, key, query, body)
        if kind == "lost":
            self._error(500)
            return
        if kind == "wrong" and data:
            data = data[:-1] + bytes([data[-1] ^ 1])
        self._send(status, headers, data, fault)

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = _serve

    def _answer(
        self, objects: dict[str, tuple[bytes, float]], key: str, query: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        method = self.command
        if method == "GET" and not key:
            return 200, {"Content-Type": "application/xml"}, _listing(objects, query)
        if method in ("GET", "HEAD"):
            if key not in objects:
                return 404, {}, _xml_error(404)
            data, written = objects[key]
            headers = {"ETag": _etag(data), "Last-Modified": formatdate(written, usegmt=True)}
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if match is None:
                return 200, headers, data
            start, end = int(match[1]), int(match[2] or len(data) - 1) + 1
            if start >= len(data):
                return 416, {}, b""
            end = min(end, len(data))
            return 206, {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}, data[start:end]
        if method == "POST" and "uploads" in query:
            name = hashlib.md5(key.encode()).hexdigest() + str(len(self.s3.uploads))
            self.s3.uploads[name] = {}
            return 200, {}, f"<R><Bucket>b</Bucket><Key>k</Key><UploadId>{name}</UploadId></R>".encode()
        if method == "PUT" and "partNumber" in query:
            self.s3.uploads[query["uploadId"]][int(query["partNumber"])] = body
            return 200, {"ETag": _etag(body)}, b""
        if method == "POST" and "uploadId" in query:
            parts = self.s3.uploads.pop(query["uploadId"])
            body = b"".join(parts[number] for number in sorted(parts))
            objects[key] = (body, time.time())
            return 200, {}, f"<R><ETag>{escape(_etag(body))}</ETag></R>".encode()
        if method == "PUT":
            if self.headers.get("If-None-Match") == "*" and key in objects:
                return 412, {}, _xml_error(412)
            objects[key] = (body, time.time())
            return 200, {"ETag": _etag(body)}, b""
        if method == "DELETE":
            objects.pop(key, None)
            return 204, {}, b""
        if method == "POST" and "delete" in query:
            names = re.findall(r"<Key>([^<]*)</Key>", body.decode())
            for name in names:
                objects.pop(unescape(name), None)
            gone = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in names)
            return 200, {}, f"<DeleteResult>{gone}</DeleteResult>".encode()
        return 501, {}, _xml_error(500)

    def _send(self, status: int, headers: dict[str, str], data: bytes, fault: Fault | None) -> None:
        kind = fault.kind if fault else None
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            if kind == "truncate":
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            elif kind == "slow" and fault:
                for at in range(4):
                    self.wfile.write(data[len(data) * at // 4 : len(data) * (at + 1) // 4])
                    self.wfile.flush()
                    time.sleep(fault.seconds / 4)
            elif self.s3.bytes_per_s:
                for at in range(0, len(data), 1 << 18):
                    self.wfile.write(data[at : at + (1 << 18)])
                    time.sleep(len(data[at : at + (1 << 18)]) / self.s3.bytes_per_s)
            else:
                self.wfile.write(data)
        except OSError:  # the client has gone
            self.close_connection = True

    def _error(self, status: int) -> None:
        self._send(status, {}, _xml_error(status), None)


def _xml_error(status: int) -> bytes:
    code = ERRORS.get(status, "Error")
    return f"<Error><Code>{code}</Code><Message>injected {code}</Message></Error>".encode()


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def _listing(objects: dict[str, Any], query: dict[str, str]) -> bytes:
    prefix, delimiter, after = (query.get(x, "") for x in ("prefix", "delimiter", "continuation-token"))
    rows, folders, more = [], set(), ""
    for key in sorted(objects):
        if not key.startswith(prefix) or (after and key <= after):
            continue
        if len(rows) == PAGE:
            more = rows[-1]
            break
        if delimiter and delimiter in key[len(prefix) :]:
            folders.add(prefix + key[len(prefix) :].partition(delimiter)[0] + delimiter)
            continue
        rows.append(key)
    contents = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>"
        f"{time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(objects[key][1]))}</LastModified>"
        f"<ETag>{escape(_etag(objects[key][0]))}</ETag><Size>{len(objects[key][0])}</Size></Contents>"
        for key in rows
    )
    prefixes = "".join(
        f"<CommonPrefixes><Prefix>{escape(x)}</Prefix></CommonPrefixes>" for x in sorted(folders)
    )
    next_page = f"<NextContinuationToken>{escape(more)}</NextContinuationToken>" if more else ""
    return (
        f"<ListBucketResult><IsTruncated>{'true' if more else 'false'}</IsTruncated>{next_page}"
        f"{contents}{prefixes}</ListBucketResult>"
    ).encode()
