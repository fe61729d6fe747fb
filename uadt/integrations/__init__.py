"""Where `uadt` meets an RL stack: one file or folder a stack, and nothing else imports one."""
