"""The pipeline of OphthaReason (arXiv 2508.16129): data, three training stages, evaluation."""

from uadt.integrations.verl.cpu import shims

shims.install()  # a CUDA build of torchvision beside a CPU torch could not be imported otherwise
