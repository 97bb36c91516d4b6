from distrib.data.block_size import bytes_of


def test_numbers_count_alike_in_every_version_of_python() -> None:
    # `sys.getsizeof` depends on the version, and so would the order of the examples.
    assert bytes_of(0) == bytes_of(1) == bytes_of(1.5) == bytes_of(True) == 8
    assert bytes_of({"image": b"abc", "label": 7}) == 11
