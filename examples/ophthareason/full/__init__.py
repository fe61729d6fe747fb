"""The paper's three stages at full size: configurations, launch scripts and a dry run."""
