"""Issue slots: how many instructions a warp issues for a unit of useful work, counted in machine code (nvdisasm -c).

A warp scheduler issues one instruction a cycle, so this is the time that a kernel needs where nothing else limits it.

What is counted. The code is cut into basic blocks and loops (a branch back to a block that every way to the branch passes).

Attention on tensor cores, per (query, key) pair: the tile loop is the outermost loop with HMMA. Counted is its cheapest iteration
that does a whole tile's work: exactly the HMMA of a tile and exactly the LDGSTS of the next one (both follow from the
shape of its tile, which the last lines of the sources give), and of these the one with most LDG and STS (statistics of the next tile). Inner loops run as often as that
work asks for. So an inner tile counts, all of whose pairs are visible: code that hides keys, and what only the first tile does,
is left out. Divided by the pairs of a warp's tile, 16 MI x BN.

All others, per element: the loops that have 16-byte accesses of global memory of their own, or the whole kernel where there is none.
Of those that store and of those that only load (two passes over the same elements), the one with most accesses, the
cheapest among equals; each by its cheapest way with most accesses (rows of whole packs); inner loops run once. Divided by elements:
the bytes of those accesses over the bytes of an element (ELEMENT below). The sum of the two.

Not counted: what surrounds the loop, waiting, and the instructions of a called slow path. Kernels without 16-byte accesses
(the plain attention, statistics of pairs) have no figure."""

import re
from collections import defaultdict

WARPS = 4
# Kernel (as a regular expression) -> arrays of the storage type and of f32 that a counted loop moves for one element.
ELEMENT = {
    r"swiglu_fwd": (3, 0), r"swiglu_bwd": (6, 0), r"rmsnorm_fwd_\d": (3, 0), r"rmsnorm_bwd_\d": (4, 0),
    r"qk_norm_fwd": (4, 1), r"qk_norm_bwd": (4, 1), r"bias_fwd": (2, 0), r"bias_bwd": (1, 0), r"rope": (2, 1), r"rope_bias": (2, 1),
    r"rope_bias_bwd": (2, 1), r"embed_bwd": (1, 0), r"dropout_fwd": (2, 0), r"dropout_bwd": (3, 0),
    r"gather_rows|scale_rows": (2, 0), r"scatter_rows": (1, 0), r"head": (0, 1),
    r"target_logits": (2, 0), r"adamw": (1, 7), r"rmsprop": (1, 5), r"mix": (1, 3), r"add": (0, 3),
    # Half an f32: gradients in bf16, in a kernel that is compiled with those of f32.
    r"sum_squares_narrow": (0, 0.5), r"adamw_narrow": (2, 6), r"rmsprop_narrow": (2, 4), r"embed_bwd_narrow": (1, 0),
    r"adamw_in_bf16": (6, 1), r"adamw_in_bf16_narrow": (7, 0), r"adamw_in_8bit": (2, 1), r"adamw_in_8bit_narrow": (3, 0),
    r"sum_squares": (0, 1), r"kv_store": (2, 0), r"attention_decode": (1, 0), r"attention_bwd_delta_hd\d+": (2, 0),
    r"attention_bwd_dkv_sum": (0, 1), r"dequantize_nf4": (1, 0),
}


ENDS = ("EXIT", "RET", "JMP", "BRX")


class Block:
    """Instructions without a branch between them, and the numbers of the blocks that may come next."""

    def __init__(self):
        self.code, self.next = [], []

    def count(self, *ops):
        return sum(parts[0] in ops for parts in self.code)

    def wide(self, *ops):
        return sum(parts[0] in ops and "128" in parts for parts in self.code)


def kernels(text):
    """Kernel -> its blocks in order, from the text of nvdisasm -c."""
    found = {}
    for part in re.split(r"^\.text\.(?=\w+:)", text, flags=re.M)[1:]:
        name, body = part.split(":", 1)
        found[name] = blocks(body.split("\n.section")[0].split("\n\t.section")[0])
    return found


def blocks(text):
    made, labels, branches, fresh = [Block()], {}, [], True
    for line in text.splitlines():
        label = re.match(r"(\.L_\w+|\$\w+):", line)
        code = re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(@!?U?P\w+\s+)?([A-Z]\w*(?:\.\w+)*)\s*([^;]*);", line)
        if label:
            if not fresh:
                made[-1].next.append(len(made))
                made.append(Block())
            labels[label.group(1)], fresh = len(made) - 1, True
        elif code and code.group(2) != "NOP":
            guard, op, rest = code.groups()
            made[-1].code.append(op.split("."))
            fresh = False
            target = re.search(r"`\((\S+)\)", rest)
            jump = op.startswith("BRA") or (op.startswith("CALL") and target and target.group(1).startswith(".L"))  # ptxas jumps by CALL, too
            if jump or op.split(".")[0] in ENDS:
                if target and jump:
                    branches.append((made[-1], target.group(1)))
                if guard or (op.startswith("BRA") and not re.fullmatch(r"`\(\S+\)\s*", rest)):
                    made[-1].next.append(len(made))
                made.append(Block())
                fresh = True
    for block, target in branches:
        if target in labels:  # else another function's
            block.next.append(labels[target])
    return made


# ---- loops --------------------------------------------------------------------------------------------------------
def dominators(made):
    """Block -> blocks that every way from the entry to it passes."""
    before = defaultdict(list)
    reached, todo = {0}, [0]
    while todo:
        i = todo.pop()
        for n in made[i].next:
            before[n].append(i)
            if n not in reached:
                reached.add(n)
                todo.append(n)
    found = {i: set(reached) for i in reached}
    found[0] = {0}
    changed = True
    while changed:
        changed = False
        for i in sorted(reached - {0}):
            new = set.intersection(*(found[b] for b in before[i])) | {i}
            changed |= new != found[i]
            found[i] = new
    return found, before


def loops(made):
    """Header -> blocks of its loop."""
    over, before = dominators(made)
    found = {}
    for i in over:
        for header in made[i].next:
            if header in over[i]:
                inside = found.setdefault(header, {header})
                todo = [i]
                while todo:
                    b = todo.pop()
                    if b not in inside:
                        inside.add(b)
                        todo += [p for p in before[b] if p in over]
    return found


def ways(made, nodes, entry, found, work, most):
    """From `entry` through `nodes` until a block outside them or `entry` again: end -> {work: fewest instructions}. Loops inside run as
    often as `most` allows, once where `most` is None. `work(block)`: a tuple that adds up."""
    inner = {h: b for h, b in found.items() if h != entry and b < nodes}
    outermost = {h: b for h, b in inner.items() if not any(h in o and b < o for o in inner.values())}
    owner = {n: h for h, b in outermost.items() for n in b}
    steps = {}

    def step(node):
        """Ends of one node (a block, or a whole loop by its header) -> {work: instructions}."""
        if node not in steps:
            if node in outermost:
                steps[node] = trips(ways(made, outermost[node], node, found, work, most), node, most)
            else:
                done = {work(made[node]): len(made[node].code)}
                steps[node] = {n: done for n in made[node].next}
        return steps[node]

    order, seen = [], set()

    def visit(node):
        if node in seen:
            return
        seen.add(node)
        for n in step(node):
            if n in nodes and n != entry:
                visit(owner.get(n, n) if n not in outermost else n)
        order.append(node)

    visit(entry)
    none = tuple(0 for _ in work(Block()))
    at, ends = defaultdict(dict), defaultdict(dict)
    at[entry] = {none: 0}
    for node in reversed(order):
        for n, costs in step(node).items():
            merge(ends[n] if n not in nodes or n == entry else at[n], joined(at[node], costs, most))
        if not step(node):  # EXIT
            merge(ends[None], joined(at[node], {work(made[node]): len(made[node].code)}, most))
    return ends


def joined(a, b, most):
    out = {}
    for w, c in a.items():
        for v, d in b.items():
            both = tuple(x + y for x, y in zip(w, v))
            if most is None or all(x <= m for x, m in zip(both, most)):
                out[both] = min(out.get(both, c + d), c + d)
    return out


def merge(to, new):
    for w, c in new.items():
        to[w] = min(to.get(w, c), c)


def trips(ends, header, most):
    again, out = ends.pop(header, {}), {n: {} for n in ends}
    if most is None:
        return ends
    before = {tuple(0 for _ in most): 0}
    for _ in range(64):
        for n in ends:
            merge(out[n], joined(before, ends[n], most))
        before = joined(before, {w: c for w, c in again.items() if any(w[:2])}, most)
    return out


# ---- figures ------------------------------------------------------------------------------------------------------
def tiles(sources):
    """Kernel -> (products a pair, head_dim, MI, BN), from the last lines of the attention sources."""
    found = {}
    for file, macro, op, products in (("attention.cu", "FWD", "fwd", 2), ("attention_bwd_dq.cu", "BWD_DQ", "bwd_dq", 3),
                                      ("attention_bwd_dkv.cu", "BWD_DKV", "bwd_dkv", 4)):
        text = (sources / file).read_text()
        for hd, mi, bn in re.findall(rf"^ATTENTION_{macro}\((\d+), \d+, (\d+), (\d+)", text, flags=re.M):
            found[f"attention_{op}_hd{hd}_bf16"] = products, int(hd), int(mi), int(bn)
    return found


def per_pair(made, shape):
    products, hd, mi, bn = shape
    hmma, copies = products * mi * (bn // 8) * (hd // 16), 2 * bn * hd // 8 // (32 * WARPS)
    found = loops(made)
    hot = [h for h, b in found.items() if any(made[i].count("HMMA") for i in b)]
    header = max(hot, key=lambda h: len(found[h]))

    def work(block):
        return block.count("HMMA"), block.count("LDGSTS"), block.count("LDG", "STS")

    again = ways(made, found[header], header, found, work, (hmma, copies, 64)).get(header, {})
    whole = {w[2]: c for w, c in again.items() if w[:2] == (hmma, copies)}
    if not whole:
        return None
    return whole[max(whole)] / (16 * mi * bn)


def per_element(made, kernel):
    op, dtype = re.fullmatch(r"(\w+)_(bf16|f32)", kernel).groups()
    element = next((e for pattern, e in ELEMENT.items() if re.fullmatch(pattern, op)), None)
    found = loops(made)
    accesses = ("LDG", "STG")
    has = {h: any(made[i].wide(*accesses) for i in b) for h, b in found.items()}
    hot = {h: b for h, b in found.items() if has[h] and not any(has[o] for o in found if o != h and found[o] < b)}

    def work(block):
        return block.wide("LDG") + block.wide("STG"), block.count("STG")

    best = {}
    for header, inside in hot.items() or [(0, set(range(len(made))))]:
        ends = ways(made, inside, header, found, work, None)
        costs = ends.get(header, {}) if header in found else ends.get(None, {})
        if costs:
            w = max(costs)
            kind = w[1] > 0
            best[kind] = max(best.get(kind, (0, 0)), (w[0], -costs[w]))
    best = {k: v for k, v in best.items() if v[0]}
    if not best or element is None:
        return None if not best else f"{op}: 16-byte accesses, but no entry in ELEMENT"
    bytes_of = element[0] * {"bf16": 2, "f32": 4}[dtype] + element[1] * 4
    return sum(-cost / (16 * n / bytes_of) for n, cost in best.values())


def figures(text, sources):
    """Kernel -> (figure or None, its unit), from the text of nvdisasm -c; a text in place of the figure says what is wrong."""
    shapes, found = tiles(sources), {}
    for kernel, made in kernels(text).items():
        if kernel in shapes:
            figure = per_pair(made, shapes[kernel])
            found[kernel] = f"{kernel}: no way through its tile loop does a tile's work: is its shape (tiles) right?" if figure is None else figure, "pair"
        elif re.search("_plain_", kernel):
            found[kernel] = None, "element"
        else:
            found[kernel] = per_element(made, kernel), "element"
    return found


# ---- the page -----------------------------------------------------------------------------------------------------
BEGIN, END = "<!-- issue_slots: begin -->", "<!-- issue_slots: end -->"
BASELINE = "72302e9"
GROWTH = 1.05


def read(page):
    """(kernel, column) -> figure, as the page has it."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.split(BEGIN)[-1].split(END)[0].splitlines() if line.startswith("|")]
    found = {}
    for row in rows[2:]:
        for column, cell in zip(rows[0][2:], row[2:]):
            if cell != "-":
                found[row[0], column] = float(cell)
    return found


def shown(figure):
    return "-" if figure is None else f"{figure:.3f}" if figure < 3 else f"{figure:.2f}"


def table(rows, page, targets, baseline):
    """The page's table with the figures of `rows` in place of its own; in the columns of the baseline where `baseline`."""
    known = read(page)
    now = {(r["kernel"], f"{r['target']} at {BASELINE}" if baseline else r["target"]): r["slots"] for r in rows if isinstance(r["slots"], float)}
    known = {**{k: v for k, v in known.items() if baseline or BASELINE in k[1]}, **now}
    columns = [*(f"{t} at {BASELINE}" for t in targets), *targets]
    units = {r["kernel"]: r["unit"] for r in rows if isinstance(r["slots"], float)}
    lines = [f"| kernel | per | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for kernel, unit in units.items():
        lines.append(f"| {kernel} | {unit} | {' | '.join(shown(known.get((kernel, c))) for c in columns)} |")
    return "\n".join(lines)


def grown(rows, page):
    """What takes more than GROWTH times the slots that the page says, or is not there."""
    known, found = read(page), []
    for r in rows:
        if isinstance(r["slots"], str):
            found.append(r["slots"])
        elif r["slots"] is not None and (r["kernel"], r["target"]) not in known:
            found.append(f"{r['kernel']} ({r['target']}): the page has no issue slots for it")
        elif r["slots"] is not None and r["slots"] > GROWTH * known[r["kernel"], r["target"]] + 0.0005:
            found.append(f"{r['kernel']} ({r['file']}, {r['target']}): {shown(r['slots'])} issue slots a {r['unit']}, the page says {shown(known[r['kernel'], r['target']])}")
    return found
