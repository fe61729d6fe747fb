"""Found first by the processes that vLLM starts: the shims must be there before vLLM is imported.

Python imports a module of this name at its start; this folder is on the path of those processes
only (see `uadt.integrations.verl.cpu.platform.CpuPlatform.rollout_env_vars`).
"""

from uadt.integrations.verl.plugin import register

register()
