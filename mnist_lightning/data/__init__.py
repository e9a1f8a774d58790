"""Data modules: one reader per source, all of them uint8 images in memory."""
