"""An embedded SMTP relay: applications hand it mail on localhost:2525 and forget about it.

    app ──SMTP──▶ listener ─▶ intake ─▶ SPOOL ◀─▶ scheduler ─▶ deliver ──SMTP──▶ next hop
    operator ─▶ cli ─▶ admin ─────────────┤  │        │
    what bounces ─▶ feedback ─▶ returned ─┘  │ policy ┴─ prepare ─ settle
                                             └▶ webhooks ──HTTP──▶ app

Rooms, left may import right and never back (held by import-linter):

    cli -> app | sink | sendmail -> runtime -> feedback | api | drop -> config | listener | scheduler | admin | webhooks
        -> resend -> intake -> suppressions -> notices -> settle | routed -> deliver | spool -> oauth | prepare -> trace
        -> submission | bounce | returned | addressees -> repair -> settings -> events -> outgoing -> signing
        -> secrets | policy -> recipient | https -> envelope | reply -> resolver

Listener and scheduler meet in the spool only. `app` alone names implementations. The pure rooms (policy, settle, routed, addressees,
submission, trace, repair, bounce, recipient, envelope, reply) read no clock, open nothing and import no event loop.
docs/flow.md tells the life of a message.
"""

__version__ = "0.1.0"
