"""The model: InstructBLIP on top of transformers, its presets, its tokenizers and which towers are trained."""
