"""The custom ops of `torch.ops.mlalab`: importing this package registers them."""

from mlalab.ops.table import OPS as OPS
from mlalab.ops.table import Op as Op
