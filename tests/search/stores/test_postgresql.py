"""Stores in PostgreSQL."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from cmrhash.errors import CmrhashError
from cmrhash.search.stores import open_store


def test_equal_codes_come_in_the_order_of_the_rows(postgres):
    with closing(open_store(postgres.url)) as store:
        keys = [f"{n % 7}-{n}" for n in range(40)]
        store.replace("ties", 8, [(keys, np.zeros((40, 1), np.uint8))])
        assert store.search("ties", np.zeros((1, 1), np.uint8), 40)[1] == [keys]


def test_a_lost_connection_is_made_again(postgres):
    with closing(open_store(postgres.url)) as store, closing(open_store(postgres.url)) as other:
        store.replace("lost", 8, [(["a"], np.zeros((1, 1), np.uint8))])
        for call in (
            lambda: store.search("lost", np.zeros((1, 1), np.uint8), 1)[1] == [["a"]],
            lambda: "lost" in store.names(),
        ):
            kill = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = %s"
            )
            other._db.execute(kill, ["postgres"])
            assert call()


@pytest.mark.parametrize("url", ["postgresql://me:s3cret@/db?host=/nowhere", "postgresql://me:s3cret@/db?hots=x"])
def test_a_server_that_cannot_be_reached(postgres, url):
    with pytest.raises(CmrhashError) as caught:
        open_store(url)
    assert "\n" not in str(caught.value)
    assert "me:***@/db" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_what_a_role_may_not_do(postgres):
    with closing(open_store(postgres.url)) as store:
        store.replace("granted", 8, [(["a"], np.zeros((1, 1), np.uint8))])
        for command in (
            "CREATE ROLE reader LOGIN",
            "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader",
            "CREATE DATABASE plain",
        ):
            store._db.execute(command)
    with closing(open_store(postgres.url_of("reader", password="s3cret"))) as store:
        assert store.search("granted", np.zeros((1, 1), np.uint8), 1)[1] == [["a"]]
        for call in (
            lambda: store.replace("granted", 8, []),
            lambda: store.add("granted", []),
        ):
            with pytest.raises(CmrhashError, match=r"permission denied.*reader:\*\*\*@.*ask the owner") as caught:
                call()
            assert "\n" not in str(caught.value)
    with closing(open_store(postgres.url_of("reader", "plain"))) as store:
        assert store.names() == []
        with pytest.raises(CmrhashError, match="no extension vector.*administrator run CREATE EXTENSION"):
            store.replace("granted", 8, [])
