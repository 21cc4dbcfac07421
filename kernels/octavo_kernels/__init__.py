"""Adapter and attention kernels over one arena of pages: Triton on GPUs, native code or plain torch on CPUs."""
