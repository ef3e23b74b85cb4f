"""Several processes that train one scene together. Only ``group.py`` and ``join.py`` import torch.distributed, and one
process imports neither."""
