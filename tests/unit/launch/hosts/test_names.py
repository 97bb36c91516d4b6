import pytest

from distrib.launch.hosts.names import host_names, rank_names, rank_numbers
from distrib.launch.hosts.placement import parse_hosts, place_ranks


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["h0"], "h0"),
        (["h1", "h0"], "h0, h1"),
        ([f"h{n}" for n in range(44) if n != 42], "h0 to h41, h43"),
        ([f"n{n:03}.lan" for n in range(9, 1000)], "n009.lan to n999.lan"),
        (["10.0.0.9", "10.0.0.10", "10.0.0.11"], "10.0.0.9 to 10.0.0.11"),
        (["a", "b", "c"], "a, b, c"),
        ([f"h{n}" for n in range(0, 40, 2)], "h0, h2, h4, h6, h8, h10, h12, h14 and 12 more"),
    ],
)
def test_hosts(names: list[str], text: str) -> None:
    assert host_names(names) == text


@pytest.mark.parametrize(
    ("ranks", "text"),
    [([3], "rank 3"), ([5, 0, 2, 1], "ranks 0-2, 5"), (range(8000), "ranks 0-7999")],
)
def test_ranks(ranks: list[int], text: str) -> None:
    assert rank_numbers(ranks) == text


def test_ranks_with_their_hosts() -> None:
    placements = place_ranks(parse_hosts("h0:1,h1:9"), 10)
    assert rank_names(placements[:2]) == "rank 0 on h0, rank 1 on h1"
    assert rank_names(placements).endswith("rank 7 on h1 and 2 more")
