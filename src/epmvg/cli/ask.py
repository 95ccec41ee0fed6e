"""Verbs that serve a model over HTTP and measure its speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from epmvg.cli.screen import DEVICE, RUN, table
from epmvg.core.types import InputError


def serve(
    run: Annotated[Path, typer.Argument(help=RUN)],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    token: Annotated[
        str | None, typer.Option(envvar="EPMVG_TOKEN", help="Bearer token to ask for; better set as a variable.")
    ] = None,
    upload_mb: Annotated[int, typer.Option(help="Largest request, MB.")] = 20,
    device: Annotated[str, typer.Option(help=DEVICE)] = "auto",
) -> None:
    """Serve a run: an HTTP API, and a page to try it on."""
    from epmvg.core.locate import locate

    locate(run)  # a wrong name is named before torch is imported
    try:
        from epmvg.serve.limits import Limits
        from epmvg.serve.server import serve as run_server
    except ModuleNotFoundError as error:
        raise InputError(f"`epmvg serve` needs {error.name}: pip install 'epmvg[serve]'.") from error

    upload = upload_mb * 10**6
    limits = Limits(upload=upload, bodies=8 * upload)
    run_server(run, host=host, port=port, limits=limits, token=token, device=device)


def bench(
    run: Annotated[Path, typer.Argument(help=RUN)] = Path("default"),
    device: Annotated[str, typer.Option(help=DEVICE)] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure latency and memory of a run on this machine."""
    from epmvg.inference.timing import measure

    measured = measure(run, device=device)
    if as_json:
        print(json.dumps(measured))
        return
    table(str(run), [{"": name.replace("_", " "), "value": f"{value:,.1f}"} for name, value in measured.items()])
