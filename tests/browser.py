"""A Chromium without a window, where the machine has one: it opens a file and answers expressions, over two pipes and without the network."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WAIT_S = 60


def find_browser() -> str | None:
    """Path of a Chromium on the command path."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of a browser; a context manager. Raises RuntimeError where the browser ends or an expression throws."""

    def __init__(self, program: str) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="browser-")
        self._number = 0
        self._rest = b""
        read_there, self._to = os.pipe()
        self._from, write_there = os.pipe()
        command = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--remote-debugging-pipe",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--window-size=1500,1000", f"--user-data-dir={self._profile.name}",
        ]  # fmt: skip
        # The protocol's pipes are descriptors 3 and 4 of the browser; the shell puts them there, whatever they are here.
        shell = f'exec "$@" 3<&{read_there} 4>&{write_there}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command], pass_fds=(read_there, write_there), stderr=subprocess.DEVNULL
        )
        os.close(read_there)
        os.close(write_there)
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
        shutil.rmtree(self._profile.name, ignore_errors=True)
        self._profile.cleanup()

    def open(self, path: Path) -> None:
        """Load a file and wait for it."""
        self._call("Page.navigate", {"url": path.resolve().as_uri()}, self._session)
        until = time.monotonic() + WAIT_S
        while self.ask("document.readyState + location.protocol") != "completefile:":
            if time.monotonic() > until:
                raise RuntimeError(f"{path} was not loaded in {WAIT_S} s")

    def visit(self, url: str) -> None:
        """Load an address and wait for it."""
        # Another page in between: the same one with another end behind `#` would not be loaded.
        self._call("Page.navigate", {"url": "about:blank"}, self._session)
        self._call("Page.navigate", {"url": url}, self._session)
        self.wait(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(url)})")

    def wait(self, expression: str) -> None:
        """Wait until a JavaScript expression holds."""
        until = time.monotonic() + WAIT_S
        while not self.ask(expression):
            if time.monotonic() > until:
                raise RuntimeError(f"{expression} did not come to hold in {WAIT_S} s")
            time.sleep(0.01)

    def press(self, key: str) -> None:
        """Press a key where the focus is."""
        event = f"new KeyboardEvent('keydown', {{key: {json.dumps(key)}, bubbles: true, cancelable: true}})"
        self.ask(f"(document.activeElement || document.body).dispatchEvent({event})")

    def look(self, path: Path, *, dark: bool = False, width: int = 1500, height: int = 1000) -> None:
        """Write a picture of the page, PNG."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", {"features": scheme}, self._session)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", size, self._session)
        time.sleep(0.3)
        path.write_bytes(
            base64.b64decode(self._call("Page.captureScreenshot", {"format": "png"}, self._session)["data"])
        )

    def ask(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page."""
        answer = self._call("Runtime.evaluate", {"expression": expression, "returnByValue": True}, self._session)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def _call(self, method: str, params: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        self._number += 1
        message = {
            "id": self._number,
            "method": method,
            "params": params,
            **({"sessionId": session} if session else {}),
        }
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (said := self._read()).get("id") != self._number:
            pass
        if "error" in said:
            raise RuntimeError(f"{method}: {said['error']}")
        return said["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._from, 1 << 20)
            if not more:
                raise RuntimeError("the browser has ended")
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)
