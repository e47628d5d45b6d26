"""What matters here are the last three lines; RELAY_URL and RELAY_TOKEN come from the environment."""

import os
from pathlib import Path

SECRET_KEY = os.environ.get("SECRET_KEY", "an example, on this machine alone")
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "shop.urls"
INSTALLED_APPS = ["shop"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DATABASE", Path(__file__).parents[1] / "shop.sqlite3"),
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

EMAIL_BACKEND = "relay.client.django.EmailBackend"
DEFAULT_FROM_EMAIL = "Shop <shop@example.com>"
RELAY_TIMEOUT = 10.0
