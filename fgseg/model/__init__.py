"""SegFormer: the model, its decode head, and its initial weights."""
