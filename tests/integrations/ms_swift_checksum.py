# pyright: basic, reportMissingImports=false
# Runs in an environment of its own, where ms-swift is installed.
"""A plug-in for ms-swift's command: the example's, and a reward that a random model earns."""

import os

from swift.rewards import ORM, orms

from tests.integrations.tiny_models import checksum


class Checksum(ORM):
    def __call__(self, completions, **_columns):
        return checksum(completions=completions)


orms["checksum"] = Checksum

if "STRENGTH" in os.environ:  # else ms-swift as it is
    from examples import ms_swift_plugin
    from uadt import UADT

    ms_swift_plugin.SHAPING = UADT(strength=float(os.environ["STRENGTH"]))
