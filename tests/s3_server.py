"""Moto's S3 server, which answers one request at a time: `python -m tests.s3_server PORT`.

S3 decides each conditional write on its own. Moto's threaded server checks the
condition and writes in two steps, so that under load two racing writers can both win.
"""

import sys

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app), threaded=False)
