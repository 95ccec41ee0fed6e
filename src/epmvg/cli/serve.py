"""Commands that run a model as a service or measure its speed: `serve` and `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from epmvg.cli.console import Device, Run, print_table
from epmvg.core.locate import locate
from epmvg.core.types import InputError


def serve(
    run: Run,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 means all network interfaces.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    token: Annotated[
        str | None, typer.Option(envvar="EPMVG_TOKEN", help="Required bearer token; better set as a variable.")
    ] = None,
    upload_mb: Annotated[int, typer.Option(help="Largest request, MB.")] = 20,
    device: Device = "auto",
) -> None:
    """Serve a run: an HTTP API, and a web page to try it on."""
    locate(run)  # a wrong name is rejected before torch is imported
    from epmvg.serve.limits import Limits
    from epmvg.serve.server import serve as run_server

    if upload_mb < 1:
        raise InputError(f"--upload-mb is {upload_mb}. Give a number above 0.")
    upload = upload_mb * 10**6
    limits = Limits(request_bytes=upload, total_request_bytes=8 * upload)
    run_server(run, host=host, port=port, limits=limits, token=token, device=device)


def bench(run: Run = Path("default"), device: Device = "auto") -> None:
    """Measure latency and memory of a run on this machine."""
    from epmvg.inference.timing import measure

    measured = measure(run, device=device)
    print_table(str(run), [{"": name, "value": value} for name, value in measured.items()])
