"""A shop that mails by a relay.

python manage.py migrate --run-syncdb
RELAY_URL=http://127.0.0.1:2580 RELAY_TOKEN=relay_… python manage.py runserver
curl -d email=ann@example.net http://127.0.0.1:8000/orders
"""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
    execute_from_command_line(sys.argv)
