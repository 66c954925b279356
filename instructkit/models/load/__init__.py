"""Models from folders, hubs and parts."""
