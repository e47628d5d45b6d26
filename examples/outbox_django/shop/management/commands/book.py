"""`manage.py book ann@example.net`."""

from django.core.management.base import BaseCommand, CommandError, CommandParser

from shop.models import Order


class Command(BaseCommand):
    help = "Book an order of a customer."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("customer")

    def handle(self, *args: object, **options: str) -> None:
        try:
            order = Order.book(options["customer"])
        except ValueError as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"order {order.pk}")
