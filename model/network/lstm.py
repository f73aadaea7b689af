"""An LSTM that is fast when it is run one step at a time, as search does."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

States = tuple[Tensor, Tensor]


class LSTM(nn.LSTM):
    """`torch.nn.LSTM`, batch first. After `pack`, single steps on a CPU use few and large operations.

    PyTorch's own step reorders the weights at each call, which takes longer than the step itself.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__(input_size, hidden_size, num_layers, batch_first=True, dropout=dropout)
        self._packed: list[tuple[Tensor, Tensor]] = []

    def pack(self) -> None:
        """Prepare for inference with the present weights."""
        self._packed = []
        for layer in range(self.num_layers):
            w_input, w_hidden, b_input, b_hidden = (
                getattr(self, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            self._packed.append((torch.cat([w_input, w_hidden], 1), b_input + b_hidden))

    def forward(  # type: ignore[override]
        self, inputs: Tensor, state: States | None = None
    ) -> tuple[Tensor, States]:
        if not self._packed or state is None or inputs.shape[1] != 1:
            return super().forward(inputs, state)
        below, hidden, cells = inputs[:, 0], [], []
        for (weight, bias), h, c in zip(self._packed, *state, strict=True):
            below, c = _step(functional.linear(torch.cat([below, h], 1), weight, bias), c)
            below = below.to(weight.dtype)
            hidden.append(below)
            cells.append(c)
        return below.unsqueeze(1), (torch.stack(hidden), torch.stack(cells))

    def input_weights(self) -> tuple[Tensor, Tensor]:
        """What turns inputs into their part of the gates of the first layer: weight (4H, inputs), bias (4H,)."""
        parameter = self.get_parameter
        return parameter("weight_ih_l0"), parameter("bias_ih_l0") + parameter("bias_hh_l0")

    def forward_gates(self, gates: Tensor, state: States) -> tuple[Tensor, States]:
        """As `forward` of a single layer, with what inputs and biases add to its gates, (N, T, 4H), as the input."""
        h, c = (part[0] for part in state)
        weight: Tensor = self.get_parameter("weight_hh_l0")
        outputs = []
        for step in gates.unbind(1):
            h, c = _step(step + functional.linear(h, weight), c)
            h = h.to(weight.dtype)
            outputs.append(h)
        return torch.stack(outputs, 1), (h.unsqueeze(0), c.unsqueeze(0))


def _step(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden and cell state (N, H) in fp32 after a step with gates (N, 4H), before their activation functions."""
    write, forget, new, read = gates.float().chunk(4, 1)
    c = forget.sigmoid() * c + write.sigmoid() * new.tanh()
    return read.sigmoid() * c.tanh(), c
