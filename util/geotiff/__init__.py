"""Cloud-optimised GeoTIFFs, written in parts."""
