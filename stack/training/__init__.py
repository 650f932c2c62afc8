"""Post-training: supervised fine-tuning and preference optimisation, as jobs on Ray Train."""
