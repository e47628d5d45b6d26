"""What leaves, byte for byte: rewritten, re-encoded, signed."""

OUT = ".out"  # ends the name of a file with a body that was re-encoded for one try
