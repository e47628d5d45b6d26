"""SQLAlchemy, without a framework: orders are stored, then their mail is sent, then they are marked.

The key of each mail is made of its row: if this program dies between the sending and the mark, the next run sends it again,
and the relay says that it has it. (An outbox does the same for mail that is written within the transaction: docs/outbox.md.)

    RELAY_URL=http://127.0.0.1:2580 RELAY_TOKEN=relay_… python sqlalchemy_app.py sqlite:///shop.db ann@example.net bob@example.net
"""

import sys

from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from relay.client import Message, Receipt, Relay


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    queue_id: Mapped[str | None]


def confirmation(order: Order) -> Message:
    return Message(
        from_="Shop <shop@example.com>",
        to=order.email,
        subject=f"Your order {order.id}",
        text="Thank you.\n",
        key=f"order-{order.id}",
    )


def confirm(session: Session, relay: Relay) -> None:
    """All that are not confirmed yet. One that is refused stays, and is told."""
    orders = session.scalars(select(Order).where(Order.queue_id.is_(None)).order_by(Order.id)).all()
    for order, result in zip(orders, relay.send_many(map(confirmation, orders)), strict=True):
        if isinstance(result, Receipt):
            order.queue_id = result.queue_id
        else:
            print(f"order {order.id}: {result}", file=sys.stderr)
    session.commit()


def main(url: str, *emails: str) -> None:
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    with Session(engine) as session, Relay() as relay:
        session.add_all(Order(email=email, queue_id=None) for email in emails)
        session.commit()
        confirm(session, relay)
        for order in session.scalars(select(Order).order_by(Order.id)):
            print(order.id, order.email, order.queue_id)
    engine.dispose()


if __name__ == "__main__":
    main(*sys.argv[1:])
