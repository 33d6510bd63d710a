"""Labels as rasters, vectors or tables, on the target grid."""
