"""Attention of a population's prefix tree by fused kernels, where a device has a faster one."""
