"""Examples become prompts: training templates, evaluation protocols, exports."""
