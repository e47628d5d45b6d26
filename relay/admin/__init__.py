"""What operators and scrapers ask: HTTP on a UNIX socket (everything) and on loopback TCP (health and metrics only)."""
