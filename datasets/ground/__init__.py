"""Grids, planets, wrap-around, warping and areas of interest."""
