"""The `steadfast` command."""
