"""Reports: what a run reached, beside the published numbers, with all that it takes to get there again."""
