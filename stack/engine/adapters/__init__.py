"""LoRA adapters: read, held beside a base model's weights, and computed for the rows that want them."""
