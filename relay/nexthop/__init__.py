"""Where a domain's mail goes, and how securely. Owns: MX, addresses, MTA-STS and DANE; asks the DNS and fetches policies.

`mx` finds the hosts of a domain, `site` the lane that they share, `sts` and `dane` what their TLS must be, `policy` puts
that together. Opens no SMTP session.
"""
