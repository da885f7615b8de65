"""What an NDIF server needs to hold models on a CPU.

``serve.py --cpu`` puts this folder on the server's path and names ``CpuModelActor``.
"""

from functools import partial

import ray
import torch
from ndif.services.ray.sandbox import host
from ndif.services.ray.sandbox.model import SandboxModelDeployment
from nnsight.modeling.huggingface import HuggingFaceModel

# The process of an untrusted request reads the model's config from the same hub, and may take its
# time to start on a machine of few cores.
host.RUNNER_ENV = (*host.RUNNER_ENV, "HF_ENDPOINT", "HF_HUB_OFFLINE", "NO_PROXY")
host.spawn = partial(host.spawn, timeout=300.0)


def nothing(*_args, **_kwargs):
    """Stand in for what only a GPU can do."""


class CpuDeployment(SandboxModelDeployment):
    """A model on the CPU; untrusted requests run in a process of their own."""

    def load_from_disk(self):
        """Load the weights into memory."""
        torch.cuda.synchronize = nothing
        torch.cuda.empty_cache = nothing
        torch.set_num_threads(1)
        self.gpu_mem_bytes_by_id = {}
        model = HuggingFaceModel.from_model_key(
            self.model_key, dispatch=True, dtype=self.dtype_name, device="cpu", **self.kwargs
        )
        model._module.requires_grad_(False)
        return model


@ray.remote(num_cpus=1, max_restarts=-1)
class CpuModelActor(CpuDeployment):
    """The Ray actor of :class:`CpuDeployment`."""
