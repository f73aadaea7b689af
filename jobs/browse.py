"""`nightcap browse`: a local page over the tables of an output. Heavy imports are inside the functions."""

from __future__ import annotations

import argparse
import logging

from jobs.serve import listen, stop
from jobs.settings import load_job

logger = logging.getLogger(f"nightcap.{__name__}")


def browse(args: argparse.Namespace) -> int:
    config = load_job(args).config

    from conf.signals import STOP_SIGNALS, handled

    with listen(args.host, args.port) as listener:
        import uvicorn

        from pages.browsing.app import make_app
        from pages.browsing.guard import is_loopback
        from pipeline.prepare import output_folder
        from pipeline.store.stores import Stores

        host, port = listener.getsockname()[:2]
        local = is_loopback(host)
        with Stores(config.s3, config.input) as stores:
            app, browser = make_app(output_folder(stores, args.output), stores, config, local=local)
            server = uvicorn.Server(
                uvicorn.Config(
                    app,
                    ws="none",
                    lifespan="off",
                    limit_concurrency=100,
                    timeout_keep_alive=15,
                    timeout_graceful_shutdown=3,
                    server_header=False,
                    access_log=False,
                    log_config=None,
                    log_level="warning",
                )
            )
            if not local:
                logger.warning("everyone who reaches port %d can see the images; see docs/pages.md", port)
            print(f"http://{f'[{host}]' if ':' in host else host}:{port}/", flush=True)
            try:
                with handled(STOP_SIGNALS, stop(server)):
                    server.run(sockets=[listener])
            finally:
                browser.close()
    return 0
