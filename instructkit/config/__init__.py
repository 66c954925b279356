"""Settings of runs: what there is (`settings`), where it is read (`read`), what does not go together (`conflicts`)."""
