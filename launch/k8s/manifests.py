"""Reads and writes manifests as YAML, with PyYAML, an optional dependency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distrib.errors import ConfigurationError


def dump(objects: Sequence[Any]) -> str:
    """Return objects as YAML documents, with keys in the objects' order.

    Raises:
        ConfigurationError: If PyYAML is not installed.
    """
    yaml = _yaml()

    class Dumper(yaml.SafeDumper):  # type: ignore[name-defined]
        """Writes repeated values in full."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    return str(
        yaml.dump_all(objects, Dumper=Dumper, sort_keys=False, width=1000, explicit_start=True)
    )


def load(text: str) -> list[Any]:
    """Return the contents of YAML documents.

    Raises:
        ConfigurationError: If PyYAML is not installed.
        ValueError: If the text is not YAML.
    """
    yaml = _yaml()
    try:
        return [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ConfigurationError(
            "Manifests are YAML, and PyYAML is not installed: pip install 'distrib[k8s]'."
        ) from error
    return yaml
