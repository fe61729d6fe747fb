"""What verl 0.9.1 lacks to train without a GPU, chosen with ``VERL_PLATFORM=cpu``."""
