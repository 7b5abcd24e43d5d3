"""The parts of a random model's layers, each in its usual form or an odd one, and what is between.

A part reads and sets the roles of its layer: numbers of the tensors that stand for query, key and
so on from here.
"""

from __future__ import annotations

from collections.abc import Callable

from mlalab.passes.aliasing import Region
from tests.passes.fuzz_steps import HIDDEN, POSITIONS, Writer, is_mla, rotary_dim

_FACTORS = (0.5, 2.0, -1.0)


def project(w: Writer, n: int) -> None:
    roles = w.roles[n]
    done = [r["hidden"] for r in w.roles[:n]]
    hidden = done[-1] if done else HIDDEN
    made = w.do("project", n, hidden)
    names = ("q", "c", "k") if is_mla(w, n) else ("q", "k", "v", "all")
    roles |= dict(zip(names, made, strict=True))
    roles["positions"] = POSITIONS
    if w.odd(6):
        _another_source(w, n)
    if w.odd(10):
        roles["positions"] = w.method(POSITIONS, ("clone", "contiguous", "relu")[w.choose(3)])


def _another_source(w: Writer, n: int) -> None:
    """Query and key from elsewhere than their own products."""
    roles, which = w.roles[n], w.choose(5)
    q, k = w.known[roles["q"]], w.known[roles["k"]]
    if which == 0:
        roles["q"] = w.method(roles["q"], ("cos", "clone", "contiguous", "neg")[w.choose(4)])
    elif which == 1 and q[0:1].numel() <= w.known[HIDDEN].size(-1):
        # A part of the graph's input, in its own memory where no dtype stands between.
        part = w.made(HIDDEN, "cut", HIDDEN, 0, q.shape[1:].numel())
        part = w.method(part, "view", -1, *q.shape[1:])
        part = w.method(part, "to", q.dtype)
        roles["q"] = part if w.known[part].shape == q.shape else roles["q"]
    elif which == 2:
        flat = [w.method(roles[x], "flatten", 1) for x in ("q", "k")]
        both = w.made(flat[0], "cat", *flat)
        widths = [w.known[x].size(-1) for x in flat]
        parts = w.do("split", both, *widths)
        for role, part, like in zip(("q", "k"), parts, (q, k), strict=False):
            roles[role] = w.method(part, "view", -1, *like.shape[1:])
    elif which == 3 and q.shape == k.shape:
        roles["k"] = roles["q"]
    else:
        roles["k"] = w.method(roles["k"], ("sin", "clone", "contiguous", "neg")[w.choose(4)])


def rope(w: Writer, n: int) -> None:
    if w.layers[n].rotary_emb is None or w.odd(25):
        return
    (_rope_mla if is_mla(w, n) else _rope_gqa)(w, n)
    if w.odd(20):
        (_rope_mla if is_mla(w, n) else _rope_gqa)(w, n)


def _rotated(w: Writer, n: int, q: int, k: int, flat: bool = False) -> tuple[int, int]:
    positions = w.pick(n, "positions")
    if w.odd(30):
        q, k = k, q
        return _turned(w, n, positions, q, k, flat)[::-1]
    # Another layer's table, where that is as wide.
    other = w.choose(len(w.layers)) if w.odd(20) else n
    like = [w.layers[x].rotary_emb is not None and rotary_dim(w.layers[x]) for x in (other, n)]
    return _turned(w, other if like[0] == like[1] else n, positions, q, k, flat)


def _turned(w: Writer, n: int, positions: int, q: int, k: int, flat: bool) -> tuple[int, int]:
    """Rotate; an in-place op on one memory twice means another thing once it is functional."""
    shared = Region.of(w.known[q]).overlaps(Region.of(w.known[k]))
    w.in_order = w.in_order and not (shared and w.layers[n].rotary_emb.custom_op)
    made = w.do("rope", n, positions, q, k, flat)
    return (made[0], made[1]) if made else (q, k)


def _rope_mla(w: Writer, n: int) -> None:
    roles, shape = w.roles[n], w.layers[n].shape
    nope, width = shape.qk_nope_head_dim, shape.qk_head_dim
    q = w.pick(n, "q")
    part = w.made(q, "cut", q, nope, width)
    if w.odd(12):
        part = w.method(part, ("relu", "clone", "contiguous")[w.choose(3)])
    if w.odd(12):
        part = _there_and_back(w, part)
    q_rot, k_rot = _rotated(w, n, part, w.pick(n, "k"))
    if w.odd(6):
        between(w, n)
    form = w.choose(14)
    if form == 0:
        left = w.made(q, "cut", q, 0, nope)
        roles["q"] = w.made(q, "cat", left, q_rot)
    elif form == 1:
        middle = nope + w.choose(width - nope)
        w.do("put", q, nope, middle, q_rot, 0)
        w.do("put", q, middle, width, q_rot, middle - nope)
        roles["q"] = q
    elif form == 2:
        roles["q"] = w.method(q, "clone")
        w.do("put", roles["q"], nope, width, q_rot, 0)
    else:
        w.do("put", q, nope, width, q_rot, 0)
        roles["q"] = q
    roles |= {"q_rot": q_rot, "k": k_rot}


def _rope_gqa(w: Writer, n: int) -> None:
    roles, flat = w.roles[n], not w.odd(3)
    q, k = w.pick(n, "q"), w.pick(n, "k")
    if not flat:
        q, k = _heads(w, n, q), _heads(w, n, k)
    roles["q"], roles["k"] = _rotated(w, n, q, k, flat and w.known[q].dim() == 2)


def _heads(w: Writer, n: int, i: int) -> int:
    return (
        w.method(i, "unflatten", -1, (-1, w.layers[n].shape.head_dim))
        if w.known[i].dim() == 2
        else i
    )


def update(w: Writer, n: int) -> None:
    roles = w.roles[n]
    if not is_mla(w, n):
        for role in ("q", "k", "v"):
            roles[role] = _heads(w, n, roles[role])
    if w.odd(15):
        _scaled(w, n, "k")
    times = 0 if w.odd(25) else 2 if w.odd(20) else 1
    for _ in range(times):
        a, b = (w.pick(n, x) for x in (("c", "k") if is_mla(w, n) else ("k", "v")))
        if is_mla(w, n) and w.odd(8):
            b = w.method(b, "squeeze", 1)
        scale = w.choose(len(w.layers)) if w.odd(20) else n
        made = w.do("update", n, a, b, scale if is_mla(w, scale) else n)
        if made:
            # What nothing reads may be dropped from a graph, whatever it does.
            w.in_order = w.in_order and "dummy" not in roles
            roles["dummy"] = made[0]


def attend(w: Writer, n: int) -> None:
    roles, mla = w.roles[n], is_mla(w, n)
    if w.odd(10):
        _scaled(w, n, "q")
    q = w.pick(n, "q")
    others = [w.pick(n, x) for x in (("c", "k") if mla else ("k", "v"))]
    dummy = w.pick(n, "dummy") if "dummy" in roles else None
    if w.odd(30):
        dummy = None
    w.in_order = w.in_order and dummy == roles.get("dummy")
    prepared = w.made(-1, "prepare", n, w.pick(n, "q")) if mla and w.odd(12) else -1
    made = w.do("attend", n, (q, *others), dummy, None if prepared < 0 else prepared)
    w.in_order = w.in_order and bool(made)
    roles["hidden"] = made[0] if made else roles["hidden"]
    if w.odd(6):
        w.shown.add(roles[("q", "k", "dummy", "q_rot")[w.choose(4)]] if len(roles) > 7 else q)


def _scaled(w: Writer, n: int, role: str) -> None:
    """Scale what has a role, out of place or in place, whole or a part."""
    i, by = w.roles[n][role], _FACTORS[w.choose(3)]
    width = w.known[i].size(-1)
    if w.choose(2):
        w.roles[n][role] = w.method(i, "mul", by)
    else:
        start = (0, width // 2, w.choose(width))[w.choose(3)]
        w.do("scale", i, start, (width, start + 1, width)[w.choose(3)], by)


def between(w: Writer, n: int) -> None:
    """Put something between two parts."""
    roles = [x for x in w.roles[n] if x not in ("hidden", "positions", "dummy")]
    role = roles[w.choose(len(roles))]
    i = w.roles[n][role] if w.choose(3) else w.some()
    kinds = (_read, _read, _view, _view, _copied, _in_place, _scaled_role, _added, _table, _shown)
    kinds[w.choose(len(kinds))](w, n, role, i)


def _read(w: Writer, n: int, role: str, i: int) -> None:
    made = w.method(i, ("sin", "relu", "clone", "abs", "exp")[w.choose(5)])
    w.shown.add(made)


def _view(w: Writer, n: int, role: str, i: int) -> None:
    w.roles[n][role] = _there_and_back(w, w.roles[n][role])


def _there_and_back(w: Writer, i: int) -> int:
    """Look at a tensor in another way, and back."""
    x, which = w.known[i], w.choose(6)
    if which == 0:
        return w.method(w.method(i, "unsqueeze", 1), "squeeze", 1)
    if which == 1:
        return w.method(w.method(i, "transpose", 0, 1), "transpose", 0, 1)
    if which == 2:
        return w.method(w.method(i, "flatten", 1), "view", -1, *x.shape[1:])
    if which == 3:
        return w.method(w.method(i, "reshape", -1), "reshape", -1, *x.shape[1:])
    if which == 4:
        return w.made(i, "cut", i, 0, x.size(-1))
    return w.method(i, ("contiguous", "detach")[w.choose(2)])


def _copied(w: Writer, n: int, role: str, i: int) -> None:
    w.roles[n][role] = w.method(w.roles[n][role], ("clone", "contiguous")[w.choose(2)])


def _in_place(w: Writer, n: int, role: str, i: int) -> None:
    if w.choose(2):
        w.method(i, ("mul_", "add_")[w.choose(2)], 0.5)
    else:
        width = w.known[i].size(-1)
        start = w.choose(width)
        w.do("scale", i, start, start + 1 + w.choose(width - start), 0.5)


def _scaled_role(w: Writer, n: int, role: str, i: int) -> None:
    _scaled(w, n, role)


def _added(w: Writer, n: int, role: str, i: int) -> None:
    """Something depends on something else of its shape, out of place or in place."""
    own = w.roles[n][role]
    alike = [j for j, x in enumerate(w.known) if x.shape == w.known[own].shape]
    j = alike[w.choose(len(alike))]
    if w.known[j].dtype == w.known[own].dtype:
        w.roles[n][role] = w.made(own, "with", own, ("add", "mul", "add_", "copy_")[w.choose(4)], j)


def _table(w: Writer, n: int, role: str, i: int) -> None:
    if w.layers[n].rotary_emb is not None:
        w.shown.add(w.made(HIDDEN, "table", n))


def _shown(w: Writer, n: int, role: str, i: int) -> None:
    """The caller sees a tensor, or a view of it."""
    if w.choose(2):
        i = w.method(i, "unsqueeze", 0)
    w.shown.add(i)


PHASES: tuple[Callable[[Writer, int], None], ...] = (project, rope, update, attend)
