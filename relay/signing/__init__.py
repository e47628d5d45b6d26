"""DKIM (RFC 6376, RFC 8463) and ARC (RFC 8617): keys, which of them sign what, signatures, and whether they are published.

Owns: private keys, once they are read. Promises: a key is in no repr, error, log or answer; what is signed is what it was
given, byte for byte. dkimpy keeps the tags, the canonical form of fields and the verification; cryptography does all that a
private key does.
"""
