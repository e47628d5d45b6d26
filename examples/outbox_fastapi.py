"""A shop that books orders and says so by mail: the order and its mail in one transaction, by FastAPI and SQLAlchemy.

export DATABASE_URL=postgresql+psycopg://shop@/shop
uvicorn outbox_fastapi:app
curl -d '{"customer": "ann@example.net"}' -H 'Content-Type: application/json' http://127.0.0.1:8000/orders
RELAY_OUTBOX_DATABASE=$DATABASE_URL relay outbox run
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from relay import outbox

engine = create_engine(os.environ.get("DATABASE_URL", "sqlite:///shop.db"))
app = FastAPI()

with engine.begin() as connection:
    connection.execute(
        text("CREATE TABLE IF NOT EXISTS orders (number VARCHAR(36) PRIMARY KEY, customer TEXT NOT NULL)")
    )
    outbox.create(connection)


def in_transaction() -> Iterator[Session]:
    """Commits once the endpoint returned, rolls back where it raised."""
    with Session(engine) as session, session.begin():
        yield session


# function: committed before the answer leaves, so that 201 says that it is booked.
Transaction = Annotated[Session, Depends(in_transaction, scope="function")]


class NewOrder(BaseModel):
    number: str
    customer: str


@app.post("/orders", status_code=201)
def book(order: NewOrder, session: Transaction) -> dict[str, str]:
    message = {
        "from": "shop@example.com",
        "to": order.customer,
        "subject": f"Order {order.number}",
        "text": "Thank you.\n",
    }
    key = outbox.enqueue(session, message | {"headers": {"X-Order": order.number}})
    session.execute(text("INSERT INTO orders VALUES (:number, :customer)"), order.model_dump())
    if order.customer.endswith("@blocked.example"):
        raise HTTPException(409, "no orders of this customer")  # and no mail
    return {"mail": key}
