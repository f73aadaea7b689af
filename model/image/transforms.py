"""Transforms of a batch of images on the model's device: normalization, and augmentation for training."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from conf.captioner import Preprocessing


def normalize(
    pixels: Tensor, by: Preprocessing, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Scale uint8 pixels (B, H, W, 3) on any device to (B, 3, H, W) of `dtype` on `device`, channels-last in memory.

    Each channel becomes (pixel / 255 - mean) / std, with the `mean` and `std` of `by`. Resizing happens in
    `model.image.decode`, so H and W stay as they are.
    """
    images = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).to(dtype)
    scaled = _scaled_once if device.type == "cuda" else _scaled
    return (images - scaled(tuple(by.mean), device, dtype)) / scaled(tuple(by.std), device, dtype)


def _scaled(channels: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """255 times a value for each channel, (3, 1, 1)."""
    return torch.tensor(channels, device=device, dtype=dtype).view(3, 1, 1) * 255


@lru_cache
def _scaled_once(channels: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """As `_scaled`, copied to the device once, since each copy waits for the GPU. Not for what is traced on a CPU."""
    with torch.inference_mode(False):  # training may use it too
        return _scaled(channels, device, dtype)


def augment(images: Tensor, generator: torch.Generator, crop: float = 0.85) -> Tensor:
    """Random flip, crop-and-resize and brightness for normalized images (B, 3, H, W); the shape is kept.

    `crop` is the smallest share of each side that is kept. For training only, never for inference.
    """
    size = images.shape[0]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    scale = uniform(crop, 1.0, size, 2)
    shift = uniform(-1.0, 1.0, size, 2) * (1 - scale)
    theta = torch.zeros(size, 2, 3)
    theta[:, 0, 0] = scale[:, 0] * torch.where(uniform(0, 1, size) < 0.5, 1.0, -1.0)
    theta[:, 1, 1] = scale[:, 1]
    theta[:, :, 2] = shift
    grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    sampled = torch.nn.functional.grid_sample(
        images, grid.to(images.device), padding_mode="reflection", align_corners=False
    )
    gain = uniform(0.85, 1.15, size, 1, 1, 1).to(images.device)
    return (sampled * gain).contiguous(memory_format=torch.channels_last)
