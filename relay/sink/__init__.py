"""`relay sink`: a small upstream that keeps what it gets, as one .eml file a message; and behaves as a provider does.

It stands behind the same front door as the relay, with a folder in the place of the spool: nothing is sent on. A
`Profile` says how it behaves: what it offers, whom it lets in, its limits as token buckets, its replies and its faults.
For trying things out, for tests, and for the CI of others: docs/sink.md.
"""

from __future__ import annotations

from relay.sink.keep import Kept, read_kept, subject
from relay.sink.login import Logins
from relay.sink.profile import Profile
from relay.sink.script import named, read_script
from relay.sink.serve import Sink
from relay.sink.tally import Tally

__all__ = ["Kept", "Logins", "Profile", "Sink", "Tally", "named", "read_kept", "read_script", "subject"]
