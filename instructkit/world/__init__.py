"""The mini-world: pictures and films whose every fact is known, written out as the raw releases of all 26 datasets."""
