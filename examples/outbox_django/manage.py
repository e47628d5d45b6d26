"""A shop that books orders and says so by mail, the order and its mail in one transaction: Django's own send_mail.

python manage.py migrate
python manage.py book ann@example.net
relay outbox run --database sqlite:///shop.db
"""

import os
import sys

from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
execute_from_command_line(sys.argv)
