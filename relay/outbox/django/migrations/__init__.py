"""The table, as migrations."""
