"""What a reader reports about a data set's files, for tests of readers."""

from __future__ import annotations

from collections import Counter

from caeav.manifests.clip import Manifest


def codes(manifest: Manifest) -> Counter[str]:
    """How often each code is reported."""
    return Counter(found.code for found in manifest.findings)


def reported(manifest: Manifest, code: str) -> list[tuple[str, str]]:
    """Place and detail of each finding of one code."""
    return [(found.where, found.detail) for found in manifest.findings if found.code == code]


def details(manifest: Manifest, code: str) -> list[str]:
    """The detail of each finding of one code."""
    return [detail for _, detail in reported(manifest, code)]
