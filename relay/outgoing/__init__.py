"""What leaves, byte for byte: rewritten, re-encoded, signed."""
