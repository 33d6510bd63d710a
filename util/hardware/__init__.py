"""Devices, precision, memory of tensors and the C allocator."""
