"""What a device is, for the choice of a configuration."""

import torch


def capability(device: torch.device) -> int:
    """90 for compute capability 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
