"""CapFilt: captions for web pictures are written, those that do not fit are dropped (BLIP, arXiv 2201.12086)."""
