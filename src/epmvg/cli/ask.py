"""Verbs that serve a model over HTTP and measure its speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from epmvg.cli.screen import DEVICE, RUN, errors
from epmvg.types import InputError


def serve(
    run: Annotated[Path, typer.Argument(help=RUN)],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    token: Annotated[
        str | None, typer.Option(envvar="EPMVG_TOKEN", help="Bearer token to ask for; better set as a variable.")
    ] = None,
    queue: Annotated[int, typer.Option(help="Pictures inside at once; more are told to come back.")] = 64,
    upload_mb: Annotated[int, typer.Option(help="Largest request, MB.")] = 20,
    megapixels: Annotated[int, typer.Option(help="Largest picture, million pixels.")] = 50,
    seconds: Annotated[int, typer.Option(help="Longest wait for an answer.")] = 30,
    keep_alive: Annotated[
        int, typer.Option(help="Seconds a connection may stay idle; give more than the proxy in front.")
    ] = 90,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A further name in Host headers to answer to, on 127.0.0.1 without a token."),
    ] = None,
    device: Annotated[str, typer.Option(help=DEVICE)] = "auto",
) -> None:
    """Serve a run: an HTTP API, and a page to try it on."""
    from epmvg.models.hub import locate

    locate(run)  # a wrong name is named before torch is imported
    try:
        from epmvg.serve.limits import Limits
        from epmvg.serve.server import serve as run_server
    except ModuleNotFoundError as error:
        raise InputError(f"`epmvg serve` needs {error.name}: pip install 'epmvg[serve]'.") from error

    upload = upload_mb * 10**6
    limits = Limits(
        queue=queue,
        upload=upload,
        bodies=8 * upload,
        pixels=megapixels * 10**6,
        seconds=seconds,
        keep_alive=keep_alive,
    )
    run_server(run, host=host, port=port, limits=limits, token=token, device=device, allowed_hosts=allow_host or ())


def bench(
    preset: Annotated[
        list[str] | None, typer.Option(help="A model's name; again for several. All of paper size by default.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few rounds.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for bench.json, tables and a plot.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure speed and memory of presets against a plain re-creation of the published computation."""
    from epmvg.bench.page import tables, write_figures
    from epmvg.bench.suite import PRESETS
    from epmvg.bench.suite import bench as measure
    from epmvg.terminal import counting

    with counting(errors, "Measuring") as progress:
        found = measure(preset or PRESETS, quick=quick, progress=progress)
    if out is not None:
        write_figures(found, out)
    print(json.dumps(found) if as_json else tables(found))
