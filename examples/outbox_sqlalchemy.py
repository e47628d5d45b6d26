"""A shop that books orders and says so by mail: the order and its mail in one transaction, by SQLAlchemy.

export DATABASE_URL=sqlite:///shop.db
python outbox_sqlalchemy.py ann@example.net
relay outbox run --database sqlite:///shop.db
"""

from __future__ import annotations

import os
import sys

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from relay import outbox

engine = create_engine(os.environ.get("DATABASE_URL", "sqlite:///shop.db"))


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]


def make_tables() -> None:
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        outbox.create(connection)


def book(session: Session, customer: str) -> Order:
    """An order, and the mail that says so; neither without the other."""
    order = Order(customer=customer)
    session.add(order)
    session.flush()  # it has its id now
    message = {
        "from": "Shop <shop@example.com>",
        "to": customer,
        "subject": f"Order {order.id} is booked",
        "text": "Thank you.\n",
        "headers": {"X-Order": str(order.id)},
    }
    outbox.enqueue(session, message, key=f"order-{order.id}-booked")
    return order


if __name__ == "__main__":
    make_tables()
    with Session(engine) as session, session.begin():
        for customer in sys.argv[1:]:
            book(session, customer)
