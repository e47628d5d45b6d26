"""The real process between real programs."""
