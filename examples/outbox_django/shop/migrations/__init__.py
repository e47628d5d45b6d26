"""The orders, as migrations."""
