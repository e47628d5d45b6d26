"""OAuth2 towards upstreams: where the token of an account comes from, how it is renewed, and where what rotates is kept.

`grants` is pure: what to ask for. `endpoint` asks. `tokens` holds one account's token and decides when to ask; `store` keeps a
refresh token that was rotated; `keeper` has all accounts' and tends them. `login` is the operator's part, once.
"""
