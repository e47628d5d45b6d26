"""HTTP for programs: one table of operations, served on the UNIX socket and, to who has a token, on `admin.address`.

An operation is declared once (`route.Operation`): method, path, scope, the models of what it takes and answers. From that
table come the routes, the checks before a handler runs, the audit, and the OpenAPI document. What operations do is
`admin`'s and `intake`'s.
"""
