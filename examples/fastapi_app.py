"""FastAPI: one client for the life of the application, and an answer that says what became of the mail.

RELAY_URL=http://127.0.0.1:2580 RELAY_TOKEN=relay_… uvicorn fastapi_app:app
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Body, FastAPI, HTTPException, Request

from relay.client import AsyncRelay, Message, Refused, Unavailable


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncRelay() as relay:
        app.state.relay = relay
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/orders/{number}", status_code=201)
async def order(number: int, email: Annotated[str, Body(embed=True)], request: Request) -> dict[str, str]:
    """A client that asks again, as its connection broke, gets the same answer; its customer gets one mail."""
    relay: AsyncRelay = request.app.state.relay
    try:
        receipt = await relay.send(
            Message(
                from_="Shop <shop@example.com>",
                to=email,
                subject=f"Your order {number}",
                text="Thank you.\n",
                tag="order",
                metadata={"order": number},
                key=f"order-{number}",
            )
        )
    except Refused as error:
        raise HTTPException(422, str(error)) from None
    except Unavailable as error:
        raise HTTPException(503, "no mail can be taken now") from error
    return {"queue_id": receipt.queue_id}


@app.get("/orders/{number}/mail")
async def mail(number: int, request: Request) -> list[str]:
    relay: AsyncRelay = request.app.state.relay
    return [row["queue_id"] async for row in relay.find(key=f"order-{number}")]
