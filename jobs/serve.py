"""`nightcap serve`: the HTTP service, alone or on Ray Serve. Heavy imports are inside the functions."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from jobs.settings import load_job

if TYPE_CHECKING:
    from conf.job import JobConfig
    from pipeline.serving.service import CaptionService

logger = logging.getLogger(f"nightcap.{__name__}")


def serve(args: argparse.Namespace) -> int:
    config = load_job(args).config

    from conf.signals import STOP_SIGNALS, handled
    from pages.web.server import address_of, listen, make_server, stop

    with listen(config.serve.host, config.serve.port) as listener:
        from pages.serving.app import make_app
        from pages.web.guard import is_loopback

        service = _service(config)
        host, url = address_of(listener)
        limits = config.serve
        server = make_server(
            make_app(service, local=is_loopback(host)),
            max_connections=limits.max_connections,
            grace_seconds=limits.grace_seconds,
        )

        def report(loaded: Future[None]) -> None:
            if loaded.cancelled() or loaded.exception() is not None:
                server.should_exit = True
            else:
                logger.info("ready: %s on %s", service.bundle.model_id, url)

        logger.info("loading %s; listening on %s", service.bundle.model_id, url)
        loading = service.start()
        loading.add_done_callback(report)
        try:
            with handled(STOP_SIGNALS, stop(server)):
                server.run(sockets=[listener])
        finally:
            service.close()
        if not loading.cancelled():
            loading.result()
    logger.info("stopped")
    return 0


def application(settings: Mapping[str, Any]) -> Any:
    """The service as an application of Ray Serve, for `import_path: jobs.serve:application`.

    `settings` are the `args` of the configuration file of Ray Serve: dotted keys and values, as in
    {"model.bundle": "s3://shop/bundle"}. Each replica loads the model before it takes requests, and computes with the
    CPUs that it reserves. Raises ConfigError.
    """
    import ray
    from ray import serve as ray_serve

    from conf.job import JobConfig
    from conf.load import load

    flags = {f"args {key}": (key, value) for key, value in settings.items()}
    config = load(JobConfig, "job", flags=flags, environment=os.environ).config

    def build() -> Any:
        from conf import logs
        from jobs.serve import _service
        from pages.serving.app import make_app

        logs.configure_worker()
        reserved: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
        service = _service(config, max(1, int(reserved.get("CPU", 0))))
        service.start().result()
        return make_app(service, local=False)  # what listens is Ray's proxy

    return ray_serve.deployment(name="nightcap")(ray_serve.ingress(build)()).bind()


def _service(config: JobConfig, cpus: int | None = None) -> CaptionService:
    """The service of a configuration, on all CPUs by default. Raises BundleError, ConfigError."""
    from pipeline.bundles import configured_bundle
    from pipeline.serving.service import CaptionService
    from pipeline.store.stores import Stores

    with Stores(config.s3) as stores:
        bundle = configured_bundle(config.model, stores)
    if bundle.confidence_note():
        logger.info(bundle.confidence_note())
    return CaptionService(bundle, config.model, config.workers, config.input, config.serve, cpus)
