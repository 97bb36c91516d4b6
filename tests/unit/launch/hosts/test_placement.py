import socket
from pathlib import Path

import pytest

from distrib.errors import UsageError
from distrib.launch.hosts import placement
from distrib.launch.hosts.placement import Host, parse_hostfile, parse_hosts, place_ranks


def places(text: str, size: int) -> list[tuple[object, ...]]:
    return [
        (p.hostname, p.local_rank, p.local_size, p.cross_rank, p.cross_size)
        for p in place_ranks(parse_hosts(text), size)
    ]


def test_hosts_are_filled_in_order() -> None:
    assert places("h0:2,h1:2", 4) == [
        ("h0", 0, 2, 0, 2),
        ("h0", 1, 2, 0, 2),
        ("h1", 0, 2, 1, 2),
        ("h1", 1, 2, 1, 2),
    ]


def test_hosts_with_different_numbers_of_ranks() -> None:
    assert places("h0:1,h1:3,h2:2", 5) == [
        ("h0", 0, 1, 0, 3),
        ("h1", 0, 3, 1, 3),
        ("h1", 1, 3, 0, 1),
        ("h1", 2, 3, 0, 1),
        ("h2", 0, 1, 2, 3),
    ]


def test_hosts_that_are_not_needed_get_no_rank() -> None:
    assert places("h0:2,h1:2", 2) == [("h0", 0, 2, 0, 1), ("h0", 1, 2, 0, 1)]


def test_placements_match_horovods() -> None:
    hosts = pytest.importorskip("horovod.runner.common.util.hosts")
    text = "h0:1,h1:3,h2:2"
    theirs = hosts.get_host_assignments(hosts.parse_hosts(text), 6)
    ours = place_ranks(parse_hosts(text), 6)
    names = ("hostname", "rank", "size", "local_rank", "local_size", "cross_rank", "cross_size")
    for own, other in zip(ours, theirs, strict=True):
        assert [getattr(own, name) for name in names] == [getattr(other, name) for name in names]


def test_a_name_alone_has_one_slot() -> None:
    assert parse_hosts("node-1, 10.0.0.7:3") == [Host("node-1", 1), Host("10.0.0.7", 3)]


@pytest.mark.parametrize("text", ["", "h0:", "h0:0", "h0:x", "h0:1:2", "h0:1,,h1:1", "-oProxy:1"])
def test_invalid_hosts(text: str) -> None:
    with pytest.raises(UsageError, match="is not of the form host:slots"):
        parse_hosts(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("h0:1,[::1]:2", "knows IPv4 only"),
        ("fe80::1", "knows IPv4 only"),
        ("me@h0:2", "Set the user in ~/.ssh/config"),
        ("h0,h0:3", "with all its slots: h0:4"),
    ],
)
def test_habits(text: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        parse_hosts(text)


@pytest.mark.parametrize("text", ["h0:1,h0:2", f"localhost:1,{socket.gethostname()}:1"])
def test_one_host_under_two_names(text: str) -> None:
    with pytest.raises(UsageError, match="are the same host"):
        parse_hosts(text)


def test_too_few_slots() -> None:
    with pytest.raises(UsageError, match=r"-np 3: the hosts have 2 slots \(h0:1,h1:1\)"):
        place_ranks(parse_hosts("h0:1,h1:1"), 3)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", socket.gethostname()])
def test_the_launchers_own_host(name: str) -> None:
    assert Host(name, 1).is_local


def test_another_host() -> None:
    assert not Host(f"{socket.gethostname()}2", 1).is_local


def test_many_hosts_are_compared_with_this_one_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = []

    def count() -> dict[str, str]:
        looked_up.append(1)
        return {"lo": "127.0.0.1"}

    monkeypatch.setattr(placement, "interface_addresses", count)
    hosts = parse_hosts(",".join(f"host{n}:8" for n in range(1000)))
    ranks = place_ranks(hosts, 8000)
    assert not any(rank.host.is_local for rank in ranks)
    assert len(looked_up) == 1000


def test_placing_many_ranks_compares_no_host_with_all_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []
    monkeypatch.setattr(Host, "__eq__", lambda self, other: compared.append(1) or self is other)
    ranks = place_ranks([Host(f"host{n}", 8) for n in range(1000)], 8000)
    assert (ranks[-1].cross_rank, ranks[-1].cross_size) == (999, 1000)
    assert not compared


def test_a_hostfile(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("h0 slots=4\n\n# two more\nh1:2\nh2  # one slot\n")
    assert parse_hostfile(path) == [Host("h0", 4), Host("h1", 2), Host("h2", 1)]


@pytest.mark.parametrize("text", ["", "# nobody\n", "h0 slots=4\nh1 with two\n"])
def test_a_file_that_is_no_hostfile(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(UsageError, match="expected lines like"):
        parse_hostfile(path)


def test_a_hostfile_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        parse_hostfile(tmp_path / "hosts")
