# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUntypedBaseClass=false
# verl and Ray are not typed.
"""What becomes of the rollout server between an update and the weight sync that follows it.

verl calls a checkpoint's callback there: after the step, before its end.
"""

import logging
import os
import signal
from typing import Any, ClassVar

import psutil
import ray
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl_runs import MARK

SECONDS = 10
"""How long the sync may take from then on; the servers have started under a longer limit."""

_logger = logging.getLogger(__name__)


class _Between(CheckpointCallback):
    title: ClassVar[str] = "TransformersServer"
    sent: ClassVar[signal.Signals]

    def on_save(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        """Shorten the limit in all that take part, and signal the server."""
        shorten(None)
        workers = list(trainer.actor_rollout_wg.workers)
        for manager in trainer._rollout_server_managers():
            workers += [w for replica in manager.rollout_replicas for w in replica.workers]
        ray.get([worker.__ray_call__.remote(shorten) for worker in workers])
        for process in psutil.process_iter():
            try:
                ours = process.environ().get(MARK) == os.environ[MARK]
                if ours and self.title in " ".join(process.cmdline()):
                    process.send_signal(self.sent)
                    _logger.warning("sent %s to %s", self.sent.name, self.title)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue


def shorten(worker: Any) -> None:
    """Set the limit of the process that this runs in."""
    os.environ["UADT_CPU_TIMEOUT"] = str(SECONDS)


class Stop(_Between):
    """The server is there and does not answer."""

    sent = signal.SIGSTOP


class Kill(_Between):
    """The server is gone."""

    sent = signal.SIGKILL
