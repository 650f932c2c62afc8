"""The HTTP application: every router, one OpenAPI document. YAML decides which replicas serve which paths."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI
from starlette.middleware import Middleware

from stack.api import (
    agents,
    batch_inference,
    benchmarks,
    datasetio,
    datasets,
    docs,
    errors,
    eval,
    files,
    inference,
    inspect,
    jobs,
    models,
    openapi,
    post_training,
    providers,
    rag,
    safety,
    scoring,
    scoring_functions,
    shields,
    synthetic_data,
    telemetry,
    tool_runtime,
    toolgroups,
    ui,
    vector_dbs,
    vector_io,
)
from stack.context import Stack, open_stack
from stack.logs import configure_logging
from stack.middleware import Authentication, BodyLimit, Disconnects, Tracing
from stack.settings import get_settings

ROUTERS = tuple(
    module.router
    for module in (
        agents,
        batch_inference,
        eval,  # before benchmarks, whose ids may contain a slash
        benchmarks,
        datasetio,
        datasets,
        docs,
        files,
        inference,
        inspect,
        jobs,
        models,
        post_training,
        providers,
        rag,
        safety,
        scoring,
        scoring_functions,
        shields,
        synthetic_data,
        telemetry,
        tool_runtime,
        toolgroups,
        ui,
        vector_dbs,
        vector_io,
    )
)


def create_app(open_stack: Callable[[], AbstractAsyncContextManager[Stack]] = open_stack) -> FastAPI:
    """`open_stack` is entered when the application starts, on its event loop."""
    settings = get_settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        configure_logging(settings.log_level)
        async with open_stack() as app.state.stack:
            yield

    app: FastAPI = FastAPI(
        title="Llama Stack Specification",
        version="v1",
        description="The whole Llama Stack API.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # of FastAPI: four spans a request
        middleware=[
            Middleware(Tracing, meter=lambda: app.state.stack.meter),
            Middleware(Authentication, stack=lambda: app.state.stack),
            Middleware(BodyLimit, limit=int(settings.max_body_mb * 2**20)),
            Middleware(Disconnects),
        ],
    )
    errors.install(app)
    for router in ROUTERS:
        # Not include_router, which wraps each router and costs 80 µs a request.
        app.router.routes.extend(router.routes)
    app.openapi = lambda: openapi.document(app)  # type: ignore[method-assign]  # FastAPI's own way
    return app
