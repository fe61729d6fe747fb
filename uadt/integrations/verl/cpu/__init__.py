"""What verl 0.9.1 lacks to train without a GPU, chosen with ``VERL_PLATFORM=cpu``."""

# A Ray worker may import a module of ours before verl, and transformers before either: the shims
# must be there first.
from uadt.integrations.verl.plugin import register

register()
