"""An open store of each kind."""

from __future__ import annotations

import os
from contextlib import closing

import pytest
from random_codes import LEFTOVERS, MILVUS
from servers import MilvusServer

from cmrhash.search.stores import open_store


@pytest.fixture(scope="session", params=reversed(LEFTOVERS))
def url(request, tmp_path_factory):
    """A place for collections of each kind. A Milvus server, which is busy even when idle, ends before the others."""
    if request.param == "faiss":
        yield f"faiss:{tmp_path_factory.mktemp('faiss')}"
    elif request.param == "postgresql":
        yield request.getfixturevalue("postgres").url
    elif MILVUS in os.environ:
        yield os.environ[MILVUS]
    else:
        with MilvusServer() as server:
            yield server.url


@pytest.fixture
def store(url):
    with closing(open_store(url)) as opened:
        yield opened
