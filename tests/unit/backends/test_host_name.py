import socket

import pytest

from distrib.backends.host_name import check_host_name
from distrib.errors import ConfigurationError


def test_this_host() -> None:
    check_host_name()


def test_a_host_whose_name_has_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "nowhere.invalid")
    with pytest.raises(ConfigurationError, match=r"`127\.0\.1\.1 nowhere\.invalid` to /etc/hosts"):
        check_host_name()
