"""What a model is traced for."""

import torch

from mlalab.context import graph_serves
from mlalab.graphs import fake_mode_of
from tests.compile.batches import compiled, decode, mixed, model, run


def test_a_graph_is_made_for_the_batches_that_it_will_see():
    """With no token count to go by, Inductor takes two kernels for a norm; half of it decodes."""
    module = model("tiny", exposed=True)
    fused = compiled(module, max_num_seqs=3, max_num_batched_tokens=40)
    for batch in (decode(2), mixed(2, 4)):
        run(fused, list(module.layers), batch)
    typical = {}
    for kind, face in fused._faces.items():
        if face._graph is not None:
            with graph_serves(kind):
                _, inputs = face.traced(*[torch.empty(0)] * 2)
            mode = fake_mode_of([x for x in inputs if isinstance(x, torch.Tensor)])
            typical[kind] = set(mode.shape_env.var_to_hint_override.values())
    assert typical == {"general": {40, 20}, "decode": {3}}
