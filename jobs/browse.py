"""`nightcap browse`: a local page over the tables of an output. Heavy imports are inside the functions."""

from __future__ import annotations

import argparse
import logging

from jobs.settings import load_job

MAX_CONNECTIONS = 100
GRACE_SECONDS = 3
logger = logging.getLogger(f"nightcap.{__name__}")


def browse(args: argparse.Namespace) -> int:
    config = load_job(args).config

    from conf.signals import STOP_SIGNALS, handled
    from pages.web.server import address_of, listen, make_server, stop

    with listen(args.host, args.port) as listener:
        from pages.browsing.app import make_app
        from pages.web.guard import is_loopback
        from pipeline.prepare import output_folder
        from pipeline.store.stores import Stores

        host, url = address_of(listener)
        local = is_loopback(host)
        with Stores(config.s3, config.input) as stores:
            app, browser = make_app(output_folder(stores, args.output), stores, config, local=local)
            server = make_server(app, max_connections=MAX_CONNECTIONS, grace_seconds=GRACE_SECONDS)
            if not local:
                logger.warning("everyone who reaches %s can see the images; see docs/pages.md", url)
            print(f"{url}/", flush=True)
            try:
                with handled(STOP_SIGNALS, stop(server)):
                    server.run(sockets=[listener])
            finally:
                browser.close()
    return 0
