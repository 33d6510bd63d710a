"""Order of tiles, token masks, augmentation and prefetching."""
