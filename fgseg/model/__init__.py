"""SegFormer: its decode head, and where its weights come from."""
