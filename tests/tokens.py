"""A token endpoint over real sockets: it gives tokens that end, are revoked and rotate, and fails as a test wants it to.

`plan` is a list of answers, one for each request to `/token`; when it is used up, tokens are given. An answer is a dict of what
differs from a good one (`status`, `body`, `headers`, `raw`), a number of seconds to wait before a good one, or HANG.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import ssl
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

from aiohttp import web

HANG = object()


def refusal(error: str, description: str = "", status: int = 400) -> dict[str, Any]:
    return {"status": status, "body": {"error": error} | ({"error_description": description} if description else {})}


class Endpoint:
    """`async with Endpoint(...) as there: there.url`."""

    def __init__(
        self,
        *,
        life: float = 3600.0,
        tls: ssl.SSLContext | None = None,
        rotate: bool = False,
        ahead: float = 0.0,
        grace: float = 0.0,
        plan: list[Any] | None = None,
    ) -> None:
        """`ahead`: seconds that its clock is before ours. `rotate`: each refresh token is good once.

        `grace`: seconds that a token is good beyond its life, for who is not asking what becomes of one that is too old.
        """
        self.life, self.tls, self.rotate, self.ahead, self.grace = life, tls, rotate, ahead, grace
        self.plan = list(plan or [])
        self.login = "first-refresh-token-0Zq"  # the refresh token that is good now
        self.secret = "canary-client-secret-4Rt"
        self.key: Any = None  # the public key of the service account
        self.requests: list[dict[str, str]] = []
        self.at: list[float] = []  # when each came, monotonic
        self.given: dict[str, float] = {}  # token -> when it ends, monotonic
        self.used: set[str] = set()
        self.most_at_once = self._at_once = 0
        self.device: list[Any] = []  # answers to polls
        self.codes: dict[str, dict[str, str]] = {}
        self.elsewhere = 0  # requests to another path
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def __aenter__(self) -> Endpoint:
        app = web.Application()
        app.router.add_post("/token", self._token)
        app.router.add_post("/device", self._device)
        app.router.add_route("*", "/{rest:.*}", self._elsewhere)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self.tls)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/token"

    @property
    def device_url(self) -> str:
        return self.url.replace("/token", "/device")

    # -- what an upstream asks

    def good(self, token: str) -> bool:
        self.used.add(token)
        return self.given.get(token, 0.0) > time.monotonic()

    def revoke(self) -> None:
        """No token that was given is good any more."""
        self.given = dict.fromkeys(self.given, 0.0)

    # -- requests

    async def _elsewhere(self, request: web.Request) -> web.Response:
        self.elsewhere += 1
        return web.json_response({"access_token": "from-elsewhere", "expires_in": 3600})

    async def _token(self, request: web.Request) -> web.StreamResponse:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return await self._answer({k: str(v) for k, v in (await request.post()).items()})
        finally:
            self._at_once -= 1

    async def _answer(self, said: dict[str, str]) -> web.StreamResponse:
        self.requests.append(said)
        self.at.append(time.monotonic())
        planned = self.plan.pop(0) if self.plan else {}
        if planned is HANG:
            # Who asked leaves it behind: how many such there are is the plan's, and how long it lasts.
            self._at_once -= 1
            try:
                await asyncio.sleep(3600)
            finally:
                self._at_once += 1
        if isinstance(planned, int | float):
            await asyncio.sleep(planned)
            planned = {}
        headers = {"Date": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + self.ahead))}
        headers |= planned.get("headers", {})
        if "raw" in planned:
            return web.Response(status=planned.get("status", 200), body=planned["raw"], headers=headers)
        if "status" in planned:
            return web.json_response(planned.get("body", {}), status=planned["status"], headers=headers)
        if error := self._wrong(said):
            return web.json_response(
                {"error": error, "error_description": f"you said {said}"}, status=400, headers=headers
            )
        return web.json_response(self._granted(said) | planned.get("body", {}), headers=headers)

    def _granted(self, said: dict[str, str]) -> dict[str, Any]:
        token = f"ya29.canary-token-{len(self.given)}-{hashlib.sha256(repr(self.at).encode()).hexdigest()[:40]}"
        self.given[token] = time.monotonic() + self.life + self.grace
        body: dict[str, Any] = {"access_token": token, "token_type": "Bearer", "expires_in": self.life}
        if said["grant_type"] == "refresh_token" and self.rotate:
            self.login = f"rotated-refresh-token-{len(self.given)}-8Hn"
            body["refresh_token"] = self.login
        if "code" in said["grant_type"]:
            body["refresh_token"] = self.login
        return body

    def _wrong(self, said: dict[str, str]) -> str:
        match said["grant_type"]:
            case "refresh_token":
                return "" if said.get("refresh_token") == self.login else "invalid_grant"
            case "client_credentials":
                return "" if said.get("client_secret") == self.secret else "invalid_client"
            case "urn:ietf:params:oauth:grant-type:jwt-bearer":
                return self._wrong_statement(said["assertion"])
            case "urn:ietf:params:oauth:grant-type:device_code":
                answer = self.device.pop(0) if self.device else ""
                return "invalid_grant" if said.get("device_code") != "the-device-code" else answer
            case "authorization_code":
                asked = self.codes.pop(said.get("code", ""), None)
                if asked is None or asked["redirect_uri"] != said.get("redirect_uri"):
                    return "invalid_grant"
                digest = hashlib.sha256(said.get("code_verifier", "").encode()).digest()
                good = base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == asked["code_challenge"]
                return "" if good else "invalid_grant"
        return "unsupported_grant_type"

    def _wrong_statement(self, assertion: str) -> str:
        """Verified by cryptography, not by what made it."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.hashes import SHA256

        def raw(text: str) -> bytes:
            return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

        head, claims, signature = assertion.split(".")
        try:
            self.key.verify(raw(signature), f"{head}.{claims}".encode(), PKCS1v15(), SHA256())
        except InvalidSignature:
            return "invalid_grant"
        found, now = json.loads(raw(claims)), time.time() + self.ahead
        in_time = found["iat"] <= now + 10 and now < found["exp"] <= found["iat"] + 3600
        return "" if in_time and found["aud"] == self.url else "invalid_grant"

    async def _device(self, request: web.Request) -> web.Response:
        self.requests.append({k: str(v) for k, v in (await request.post()).items()})
        return web.json_response(
            {
                "device_code": "the-device-code",
                "user_code": "WDJB-MJHT",
                "verification_uri": "https://microsoft.example/devicelogin",
                "expires_in": 900,
                "interval": 1,
            }
        )

    def authorize(self, address: str) -> str:
        """What the browser does with the address that is shown: the address to which it is sent back."""
        asked = {k: v[0] for k, v in parse_qs(urlsplit(address).query).items()}
        assert asked["response_type"] == "code" and asked["code_challenge_method"] == "S256"
        code = f"code-{len(self.codes)}"
        self.codes[code] = asked
        return f"{asked['redirect_uri']}?code={code}&state={asked['state']}"
