"""Small servers that speak as Google's and Azure's object stores do, as far as a client of ours asks: see `s3_server`.

Google's takes the requests of S3 and has a condition of its own; Azure's lists and deletes in its own way. Neither
looks at who asks.
"""

from __future__ import annotations

import re
from email.utils import formatdate
from typing import Any, ClassVar
from urllib.parse import unquote
from xml.sax.saxutils import escape

from s3_server import S3, _etag, _Handler, _xml_error

PAGE = 3
"""Few, so that stores of tests take several pages."""


class _GoogleHandler(_Handler):
    def _answer(
        self, objects: dict[str, tuple[bytes, float]], key: str, query: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if self.headers.get("x-goog-if-generation-match") == "0":
            self.headers["If-None-Match"] = "*"
        return super()._answer(objects, key, query, body)


class _AzureHandler(_Handler):
    def _answer(
        self, objects: dict[str, tuple[bytes, float]], key: str, query: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if query.get("comp") == "list":
            return 200, {"Content-Type": "application/xml"}, _listing(objects, query)
        if query.get("comp") == "batch":
            return self._delete(objects, body)
        if self.command == "PUT" and self.headers.get("If-None-Match") == "*" and key in objects:
            return 409, {}, _xml_error(412)
        status, headers, data = super()._answer(objects, key, query, body)
        return 201 if self.command == "PUT" else status, headers, data

    def _delete(
        self, objects: dict[str, tuple[bytes, float]], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """Several deletions in one request, each of which has an answer of its own."""
        parts = []
        for number, path in enumerate(re.findall(r"DELETE (\S+) HTTP", body.decode())):
            gone = objects.pop(unquote(path).lstrip("/").partition("/")[2], None)
            said = "202 Accepted" if gone else "404 Not Found\r\nx-ms-error-code: BlobNotFound"
            parts.append(
                f"--b\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\nHTTP/1.1 {said}\r\n\r\n"
            )
        data = "".join([*parts, "--b--\r\n"]).encode()
        return 202, {"Content-Type": "multipart/mixed; boundary=b"}, data


def _listing(objects: dict[str, tuple[bytes, float]], query: dict[str, str]) -> bytes:
    wanted = [
        key
        for key in sorted(objects)
        if key.startswith(query.get("prefix", "")) and key > query.get("marker", "")
    ]
    blobs = "".join(
        f"<Blob><Name>{escape(key)}</Name><Properties>"
        f"<Last-Modified>{formatdate(objects[key][1], usegmt=True)}</Last-Modified>"
        f"<Content-Length>{len(objects[key][0])}</Content-Length><Content-Type>x/y</Content-Type>"
        f"<Etag>{escape(_etag(objects[key][0]))}</Etag></Properties></Blob>"
        for key in wanted[:PAGE]
    )
    more = wanted[PAGE - 1] if len(wanted) > PAGE else ""
    return f"<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker>{more}</NextMarker></EnumerationResults>".encode()


class Google(S3):
    handler: ClassVar[Any] = _GoogleHandler
    url = "gs://bucket/some/prefix"


class Azure(S3):
    handler: ClassVar[Any] = _AzureHandler
    url = "az://bucket/some/prefix"

    def environment(self) -> dict[str, str]:
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": "account",
            "AZURE_STORAGE_ACCOUNT_KEY": "YS1zZWNyZXQtdGhhdC1uby1maWxlLW1heS1ob2xk",
            "AZURE_STORAGE_ENDPOINT": self.endpoint,
        }
