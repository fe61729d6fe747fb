"""verl: train with any shaping through the unedited package, Ray and vLLM, on GPUs and on a CPU.

Installing ``uadt`` registers the trainer modes ``uadt_sync``, ``uadt_colocate_async`` and
``uadt_separate_async`` and the estimator name ``uadt``; nothing has to be imported.
"""
