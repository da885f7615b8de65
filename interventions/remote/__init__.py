"""Running on an NDIF server: one request per operation, and jobs that survive.

``iv.load(repo_id, remote=True)`` (or an address) gives a model without weights. Its traces go to
the server, and so does every operation of this package, each as one request, of which only the
result comes back.

**Your own experiment as one request.** Write it as a function whose first argument is the model,
and hand it to ``model.job``. It runs on the server, where the model is a local one: it may open any
number of traces and call any operation, and only what it returns travels. For a local model
``model.job`` is the plain call, so the same lines run in both places.

>>> def sweep(model, prompt, layers, place, vector):
...     plain = iv.run(model, prompt).logits
...     effects = []
...     for layer in layers:
...         patch = iv.steering(layer, place, vector)
...         effects.append((iv.run(model, prompt, patches=[patch]).logits - plain).norm(dim=-1))
...     return torch.stack(effects)                              # [layer, row], a few numbers
>>> vector = torch.ones(vlm.d_model)
>>> vlm.job(sweep, shown, range(4), shown.at("image"), vector).shape
torch.Size([4, 1])

What it may take: prompts, positions, patches, tensors, numbers, strings, functions, and containers
of them; prompts are made on this side. What it may return: the same. No Datasets: servers have no
xarray, so make them from what comes back. Code of this package, and of packages named to
:func:`carry`, is sent as the source text of its modules and is there what it is here. Functions of
your own script or notebook are sent one by one, as nnsight does it; there,
``functools.wraps``, caches, ``super()`` without arguments and ``nonlocal`` do not survive.

An operation of this package checks what needs no server, and then calls a function that runs
where the model is::

    @where_the_model_is
    def _operation(model, prompt, patches): ...

**Jobs that survive.** With ``model.jobs = Jobs(folder)``, requests are kept on the disk before they
are sent, and are found again after any crash; see :class:`Jobs`. ``interventions remote MODEL``
asks a server about a model before work is sent to it.

**Where requests run.** Code of keys that a server trusts runs beside the weights. Others run in a
process of their own, with the same numbers but no gradients, and some seconds for its start. There
``iv.attribute`` refuses, and says which ``iv.sweep`` gives the exact numbers instead.

Keys come from ``NDIF_API_KEY`` or nnsight's config, and go into the header of a call, nowhere else.
"""

from interventions.remote.jobs import Jobs, Record
from interventions.remote.preflight import Preflight, preflight
from interventions.remote.shipping import carry

__all__ = ["Jobs", "Preflight", "Record", "carry", "preflight"]
