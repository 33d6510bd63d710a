"""Parts of the model: patches, position embedding, heads, losses."""
