"""Both backends pass the contract that is shipped for third-party backends."""

from __future__ import annotations

import pytest

from caeav.pipeline.store.testing import StoreContract


class TestWebDataset(StoreContract):
    @pytest.fixture
    def backend(self) -> str:
        return "webdataset"


class TestZarr(StoreContract):
    @pytest.fixture
    def backend(self) -> str:
        return "zarr"
