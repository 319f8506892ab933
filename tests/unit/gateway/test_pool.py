"""Which engine a request goes to. No network: the pool decides on memory only."""

from __future__ import annotations

from collections import Counter
from typing import cast

import pytest
from preceptor_gateway.engine import EngineClient, EnginePool, PooledEngine
from preceptor_gateway.engine.pool import RATIO, SLACK, Routing
from preceptor_gateway.engine_urls import read_urls, short_name
from preceptor_gateway.metrics import Metrics
from preceptor_gateway.problems import Unavailable

from tests.unit.gateway.conftest import V1, V2

PREFIXES = [f"passage {number}".encode() for number in range(300)]


class Client:
    """What the pool needs of an engine's client."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.in_flight = 0


def pool_of(count: int, *, ready: tuple[str, ...] = (V1,)) -> EnginePool:
    clients = [cast(EngineClient, Client(f"http://engine-{number}:8001")) for number in range(count)]
    pool = EnginePool(clients, Metrics())
    for one in pool.engines:
        pool.bring_in(one)
        one.is_settled = True
        one.ready.update(ready)
    return pool


def homes(pool: EnginePool, adapter: str | None = V1) -> dict[bytes, str]:
    return {prefix: short_name(pool.pick(adapter, prefix).url) for prefix in PREFIXES}


def test_one_prefix_goes_to_one_engine_and_prefixes_spread() -> None:
    pool = pool_of(3)
    first = homes(pool)
    assert homes(pool) == first
    assert min(Counter(first.values()).values()) > len(PREFIXES) / 3 * 0.7


def test_every_gateway_finds_the_same_home() -> None:
    assert homes(pool_of(3)) == homes(pool_of(3))


def test_one_prefix_under_another_adapter_is_another_prefix() -> None:
    pool = pool_of(3, ready=(V1, V2))
    assert homes(pool, V1) != homes(pool, V2)


def test_an_engine_that_leaves_moves_only_its_own_share() -> None:
    pool = pool_of(3)
    before = homes(pool)
    gone = pool.engines[1]
    pool.failed(gone.client)
    after = homes(pool)
    assert {prefix for prefix in PREFIXES if before[prefix] != after[prefix]} == {
        prefix for prefix in PREFIXES if before[prefix] == gone.name
    }
    pool.bring_in(gone)
    assert homes(pool) == before


def test_load_overrides_the_prefix() -> None:
    pool = pool_of(2)
    home = pool.of(pool.pick(V1, b"p"))
    (other,) = [one for one in pool.engines if one is not home]
    home.client.in_flight = SLACK - 1
    assert pool.pick(V1, b"p") is home.client
    home.client.in_flight = SLACK
    assert pool.pick(V1, b"p") is other.client


def test_a_small_difference_on_busy_engines_overrides_nothing() -> None:
    pool = pool_of(2)
    home = pool.of(pool.pick(V1, b"p"))
    (other,) = [one for one in pool.engines if one is not home]
    home.client.in_flight, other.client.in_flight = 100 + SLACK, 100
    assert pool.pick(V1, b"p") is home.client
    home.client.in_flight = int(100 * RATIO)
    assert pool.pick(V1, b"p") is other.client


def test_without_a_prefix_the_least_loaded_is_taken_and_equals_take_turns() -> None:
    pool = pool_of(3)
    assert list(Counter(pool.pick(V1).url for _ in range(30)).values()) == [10, 10, 10]
    pool.engines[0].client.in_flight = pool.engines[2].client.in_flight = 1
    assert {pool.pick(V1).url for _ in range(9)} == {pool.engines[1].client.url}


def test_an_engine_that_was_away_does_not_get_every_request_when_it_is_back() -> None:
    pool = pool_of(2)
    pool.failed(pool.engines[0].client)
    for _ in range(100):
        pool.pick(V1)
    pool.bring_in(pool.engines[0])
    assert list(Counter(pool.pick(V1).url for _ in range(10)).values()) == [5, 5]


def test_one_engine_is_taken_without_hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(PooledEngine, "score")
    pool = pool_of(1)
    assert pool.pick(V1, b"p") is pool.engines[0].client


def test_only_engines_that_have_the_adapter_are_asked_for_it() -> None:
    pool = pool_of(3)
    pool.engines[1].ready.add(V2)
    assert {pool.pick(V2, prefix).url for prefix in PREFIXES} == {pool.engines[1].client.url}
    assert len({pool.pick(None, prefix).url for prefix in PREFIXES}) == 3


def test_a_request_that_met_no_answer_gets_one_other_engine() -> None:
    pool = pool_of(2)
    first = pool.pick(V1, b"p")
    second = pool.elsewhere(first, V1, b"p")
    assert second is not None
    assert second is not first
    assert pool.of(first).nudge.is_set()
    assert pool.elsewhere(second, V1, b"p") is None


def test_no_engine_is_a_503_that_says_when_to_come_back() -> None:
    pool = pool_of(2)
    for one in pool.engines:
        pool.failed(one.client)
    for adapter in (V1, None):
        with pytest.raises(Unavailable) as caught:
            pool.pick(adapter, b"p")
        assert (caught.value.code, caught.value.retry_after_s) == ("engine_down", 5)


def test_an_adapter_that_is_nowhere_is_loading_as_long_as_an_engine_answers() -> None:
    pool = pool_of(2)
    with pytest.raises(Unavailable) as caught:
        pool.pick(V2)
    assert caught.value.code == "adapter_loading"


def test_the_base_model_prefers_engines_whose_adapters_were_tried() -> None:
    pool = pool_of(2)
    pool.engines[0].is_settled = False
    assert {pool.pick(None, prefix).url for prefix in PREFIXES} == {pool.engines[1].client.url}
    pool.failed(pool.engines[1].client)
    assert pool.pick(None) is pool.engines[0].client


def test_an_engine_that_nobody_looked_at_yet_is_asked_for_the_base_model() -> None:
    pool = pool_of(1)
    pool.engines[0].routing = Routing.UNKNOWN
    assert pool.pick(None) is pool.engines[0].client


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("http://127.0.0.1:8001", ("http://127.0.0.1:8001",)),
        (" http://a:1/ , https://B", ("http://a:1", "https://b")),
        ("http://[::1]:8001", ("http://[::1]:8001",)),
    ],
)
def test_urls_are_read(text: str, urls: tuple[str, ...]) -> None:
    assert read_urls(text) == urls


def test_short_names_are_host_and_port() -> None:
    urls = ("http://a:1", "https://b", "http://b", "http://[::1]:8001")
    assert [short_name(url) for url in urls] == ["a:1", "b:443", "b:80", "[::1]:8001"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no engine is named"),
        (" ", "no engine is named"),
        ("127.0.0.1:8001", "'127.0.0.1:8001' is not the URL of an engine"),
        ("ftp://a:1", "'ftp://a:1' is not"),
        ("http://", "'http://' is not"),
        ("http://a:99999", "'http://a:99999' is not"),
        ("http://a:0", "'http://a:0' is not"),
        ("http://a:one", "'http://a:one' is not"),
        ("http://a:1/v1", "'http://a:1/v1' is not"),
        ("http://a:1?x=1", "is not the URL"),
        ("http://a b:1", "is not the URL"),
        ("http://[::1", "is not the URL"),
        ("http://a:1,,http://b:1", "empty place"),
        ("http://a:1,", "empty place"),
        ("http://a:1,http://b:1,http://A:1/", "'a:1' stands there twice"),
        ("http://a,https://a:80", "'a:80' stands there twice"),
    ],
)
def test_malformed_or_repeated_urls_are_refused_with_a_sentence(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r".+") as caught:
        read_urls(text)
    assert words in str(caught.value)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="user name") as caught:
        read_urls("http://me:secret@a:1")
    assert "secret" not in str(caught.value)
