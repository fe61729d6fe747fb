"""The pipeline of OphthaReason (arXiv 2508.16129): data, three training stages, evaluation."""
