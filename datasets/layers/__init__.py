"""What a layer is: tables of layers, paths, encodings, transforms and class tables."""
