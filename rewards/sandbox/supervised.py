"""A worker below a supervisor of its own, in a private folder: how foreign code runs, whatever isolates it."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from samepath.rewards.sandbox.bubblewrap import bubblewrap_command, readable_paths
from samepath.rewards.sandbox.isolation import Mode
from samepath.rewards.sandbox.supervisor import Orders
from samepath.rewards.settings import RewardSettings

PYTHON = (sys.executable, "-u", "-P", "-X", "faulthandler", "-m")
"""How a child is started: nothing printed is lost when it ends abruptly, and its folder is no place for modules."""


class SupervisedChild:
    """One supervisor and its worker. Belongs to the thread that makes it: on Linux both end when that thread does."""

    def __init__(self, channel: int, environment: Mapping[str, str], settings: RewardSettings, mode: Mode) -> None:
        """Start both; `channel` is the worker's end of the socket. Raises OSError."""
        self._folder = tempfile.mkdtemp(prefix="samepath-reward-")
        private = {"HOME": self._folder, "TMPDIR": self._folder}
        control, self._control = os.pipe()
        orders = Orders(
            channel=channel,
            control=control,
            driver=os.getpid(),
            mode=mode,
            network=settings.network,
            max_processes=settings.max_processes,
            disk_bytes=settings.disk_bytes,
            command=tuple(self._command(channel, environment, settings)) if mode == "bubblewrap" else (),
        )
        try:
            self.process = subprocess.Popen(
                [*PYTHON, "samepath.rewards.sandbox.supervisor", json.dumps(asdict(orders))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                cwd=self._folder,
                env=private | dict(environment),
                pass_fds=(channel, control),
                start_new_session=True,
            )
        except OSError:
            os.close(self._control)
            self._remove_folder()
            raise
        finally:
            os.close(control)

    def end(self, limit_s: float, patience_s: float) -> bool:
        """End the worker and all that it started, and remove its folder; False if something is still there after `limit_s`.

        Waits up to `patience_s` for it to end by itself.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=patience_s)
        os.close(self._control)
        try:
            self.process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return False
        return self._remove_folder()

    def ending(self) -> int | None:
        """The worker's exit code, negative for a signal, or one of the supervisor's own; None if it has not ended."""
        return self.process.returncode

    def _command(self, channel: int, environment: Mapping[str, str], settings: RewardSettings) -> list[str]:
        return bubblewrap_command(
            Path(self._folder),
            [*PYTHON, "samepath.rewards.sandbox.worker", str(channel)],
            readable=readable_paths(environment, Path(settings.search_path), network=settings.network),
            disk_bytes=settings.disk_bytes,
            network=settings.network,
        )

    def _remove_folder(self) -> bool:
        # The supervisor does it too, for a driver that is no more; but foreign code may have killed the supervisor.
        shutil.rmtree(self._folder, ignore_errors=True)
        return not Path(self._folder).exists()
