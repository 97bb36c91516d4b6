"""The `distrib` command."""
