"""The kernels under mlalab's ops: one folder per op, a plain torch reference in each."""
