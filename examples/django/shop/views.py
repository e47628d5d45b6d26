from functools import partial

from django.core.mail import EmailMessage
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from shop.models import Order


@csrf_exempt
def orders(request: HttpRequest) -> HttpResponse:
    """The mail goes out once the order is in the database: an order that is rolled back is confirmed to nobody."""
    with transaction.atomic():
        order = Order.objects.create(email=request.POST["email"])
        transaction.on_commit(partial(confirm, order))
        if "fail" in request.POST:
            transaction.set_rollback(True)
    return JsonResponse({"order": order.pk}, status=201)


def confirm(order: Order) -> None:
    """What is told to the relay in X-Relay-* comes back in its events; it does not leave with the mail."""
    EmailMessage(
        subject=f"Your order {order.pk}",
        body="Thank you.\n",
        to=[order.email],
        headers={"X-Relay-Tag": "order", "X-Relay-Metadata": f'{{"order": {order.pk}}}'},
    ).send()
