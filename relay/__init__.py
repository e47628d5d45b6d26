"""An embedded SMTP relay: applications hand it mail on localhost:2525 and forget about it.

    app ──SMTP──▶ listener ─▶ intake ─▶ SPOOL ◀─▶ scheduler ─▶ deliver ──SMTP──▶ next hop
    program ──HTTP──▶ api ──────┤       │ │           │
    a file ─▶ drop ─────────────┘       │ │    policy ┴─ prepare ─ settle
    operator ─▶ cli ─▶ api ─▶ admin ────┤ │
    what bounces ─▶ feedback ─▶ returned┘ └▶ webhooks ──HTTP──▶ app

In applications' processes, and in front of a relay that runs: client (over HTTP), outbox (in the application's transaction, then
by client), sendmail (over SMTP).

Rooms, left may import right and never back (held by import-linter):

    cli -> app | sink | simulate | sendmail -> runtime | generations | recovery -> feedback | api | drop
        -> config | listener | scheduler | admin | webhooks -> resend -> intake -> incoming | quotas | suppressions | attachments
        -> notices -> settle | routed -> deliver | spool -> oauth | prepare | nexthop -> trace
        -> submission | bounce | returned | compose | addressees -> repair -> guard -> settings | certificate -> events -> outgoing
        -> signing -> outbox -> secrets | policy -> recipient | https -> envelope | reply -> client

Listener and scheduler meet in the spool only. `app` alone names implementations. The pure rooms (policy, settle, routed, addressees,
compose, submission, trace, repair, bounce, recipient, envelope, reply) read no clock, open nothing and import no event loop.
docs/flow.md tells the life of a message.
"""

__version__ = "0.1.0"
