"""What comes back: by SMTP to the bounce domain, from a mailbox by IMAP, by HTTP from providers and readers.

Each door verifies who speaks as far as its protocol lets it, hands on bounded bytes, and `heard.Heard` makes of them what the
spool learns: an event, a suppression, a rate. Nothing that comes in here is ever answered by mail.
"""
