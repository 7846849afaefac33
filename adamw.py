"""AdamW with its two moments in bf16: 4 bytes a parameter instead of 8 (Table 8 trains in bf16).

With beta2 = 0.999 the second moment changes by a thousandth and less in a step, and bf16 tells numbers apart by 1/128:
rounded to the nearest it would never move. So moments are rounded at random, up or down with the probability that keeps
their mean (stochastic rounding). Weights stay in fp32. The random bits derive from step and parameter: copies draw the
same ones on every process, and a resumed run goes on exactly; shards draw theirs, so that another number of processes
rounds in another way. This file imports only torch: copy it.
"""

import torch

PIECE = 2**24  # elements that are worked on at a time, in fp32


def round_stochastic(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """fp32 -> bf16, up or down at random: the expectation is x. Not for infinities and NaN."""
    noise = torch.randint(2**16, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    return ((x.view(torch.int32) + noise) & -(2**16)).view(torch.float32).bfloat16()  # bf16: the upper half of fp32


class BF16AdamW(torch.optim.Optimizer):
    """torch.optim.AdamW's update, with moments as above. Parameters: fp32, also sharded ones (FSDP2)."""

    def __init__(self, params, lr: float, betas=(0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)  # in the parameters' type
        for state in self.state.values():
            state.update({name: state[name].bfloat16() for name in ("exp_avg", "exp_avg_sq")})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            (beta1, beta2), lr = group["betas"], group["lr"]
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
                    state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
                state["step"] += 1
                t = int(state["step"])
                tensors = parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"]
                local = [x.to_local() if hasattr(x, "to_local") else x for x in tensors]  # FSDP2: this process's shard
                generator = torch.Generator(local[0].device).manual_seed(t * len(group["params"]) + index)
                for p, grad, m, v in zip(*(x.view(-1).split(PIECE) for x in local), strict=True):
                    new_m = m.float().lerp_(grad, 1 - beta1)
                    new_v = v.float().mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                    p.mul_(1 - lr * group["weight_decay"])
                    deviation = (new_v / (1 - beta2**t)).sqrt_().add_(group["eps"])
                    p.addcdiv_(new_m, deviation, value=-lr / (1 - beta1**t))
                    m.copy_(round_stochastic(new_m, generator))
                    v.copy_(round_stochastic(new_v, generator))
