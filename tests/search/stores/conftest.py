"""An open store of each kind."""

from __future__ import annotations

import os
from contextlib import closing

import pytest
from random_codes import LEFTOVERS, MILVUS

from cmrhash.search.stores import open_store


@pytest.fixture(scope="session", params=LEFTOVERS)
def url(request, tmp_path_factory):
    """A place for collections of each kind."""
    if request.param == "faiss":
        return f"faiss:{tmp_path_factory.mktemp('faiss')}"
    if request.param == "postgresql":
        return request.getfixturevalue("postgres").url
    return os.environ.get(MILVUS) or request.getfixturevalue("milvus").url


@pytest.fixture
def store(url):
    with closing(open_store(url)) as opened:
        yield opened
