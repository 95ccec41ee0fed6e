"""Find phrases in an image with a running server (`epmvg serve RUN`); needs only the standard library.

python examples/serve_client.py street.jpg "the woman in the tan jacket" "her dog"

EPMVG_SERVER is its address, http://127.0.0.1:8000 by default; EPMVG_TOKEN its token, if it has one.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

SERVER = os.environ.get("EPMVG_SERVER", "http://127.0.0.1:8000")
TRIES = 5


def ground(image: Path, phrases: list[str]) -> dict[str, Any]:
    """Return {"width", "height", "results": [{"phrase", "box", "score"}]}; retry while the server is busy."""
    body = json.dumps({"image": base64.b64encode(image.read_bytes()).decode(), "phrases": phrases}).encode()
    headers = {"Content-Type": "application/json"}
    if "EPMVG_TOKEN" in os.environ:
        headers["Authorization"] = f"Bearer {os.environ['EPMVG_TOKEN']}"
    for attempt in range(1, TRIES + 1):
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{SERVER}/v1/ground", body, headers)) as response:
                result: dict[str, Any] = json.load(response)
                return result
        except urllib.error.HTTPError as error:
            if error.code != 429 or attempt == TRIES:
                sys.exit(message_of(error))
            time.sleep(float(error.headers["Retry-After"]))
        except urllib.error.URLError as error:
            sys.exit(f"{SERVER} cannot be reached ({error.reason}): start `epmvg serve RUN`.")
    raise AssertionError("the loop returns or exits")


def message_of(error: urllib.error.HTTPError) -> str:
    """Return the server's error message; a proxy in between may respond with something other than JSON."""
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError, TypeError):
        return f"{SERVER} responded {error.code} {error.reason}, without a message of epmvg. Ask its operator."


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("Give an image and one or more phrases.")
    for result in ground(Path(sys.argv[1]), sys.argv[2:])["results"]:
        print(f"{result['score']:.2f}  {result['phrase']}  {result['box']}")
