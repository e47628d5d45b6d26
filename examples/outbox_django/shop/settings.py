"""What the outbox wants are the last lines."""

import os
from pathlib import Path

SECRET_KEY = os.environ.get("SECRET_KEY", "of an example")
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("SHOP_DATABASE", Path(__file__).parents[1] / "shop.db"),
    }
}
if name := os.environ.get("SHOP_POSTGRES"):
    DATABASES["default"] = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": name,
        "USER": os.environ["PGUSER"],
        "HOST": os.environ["PGHOST"],
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DEFAULT_FROM_EMAIL = "Shop <shop@example.com>"

INSTALLED_APPS = ["shop", "relay.outbox.django"]
EMAIL_BACKEND = "relay.outbox.django.EmailBackend"
