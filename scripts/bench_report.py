"""The Markdown page of bench_trl.py: a table of configurations and the ratios of fusedpo to its peers.

Usage:   from bench_report import markdown      (a module; it has no command line)
Input:   summaries: dicts of config, steps, pairs, pair_tokens, step_s, steps_s, reference_s, wall_s, rss_gb, gpu_gb,
         others_cpus, note.
Output:  Markdown text.
Needs:   Python alone.
"""


def table(header, rows):
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def reference_in_steps(config):
    return config.startswith("trl-default")


def end_to_end(summary):
    return summary["steps_s"] + summary["reference_s"]


def figures(summary, pair_tokens):
    pairs_per_s = summary["pairs"] / summary["steps_s"]
    tokens_per_s = f"{pair_tokens / summary['steps_s']:.0f}" if pair_tokens else "-"
    reference = "in the steps" if reference_in_steps(summary["config"]) else f"{summary['reference_s']:.1f}"
    memory = f"{summary['rss_gb']:.2f}" + ("" if summary["gpu_gb"] is None else f" + {summary['gpu_gb']:.2f} GPU")
    return [summary["config"], f"{summary['step_s']:.2f}", f"{summary['steps_s']:.1f}", reference,
            f"{end_to_end(summary):.1f}", f"{summary['wall_s']:.1f}", f"{pairs_per_s:.2f}", tokens_per_s, memory,
            f"{summary['others_cpus']:.2f}", summary["note"]]


def ratios(ours, peers):
    """How many times faster and leaner each of `ours` is than each peer."""
    rows = []
    for peer in peers:
        for own in ours:
            steps = peer["steps_s"] / peer["pairs"] / (own["steps_s"] / own["pairs"])
            whole = end_to_end(peer) / peer["pairs"] / (end_to_end(own) / own["pairs"])
            key = "gpu_gb" if peer["gpu_gb"] and own["gpu_gb"] else "rss_gb"  # on a GPU, its memory
            memory = peer[key] / own[key]
            rows.append([peer["config"], own["config"], f"{steps:.2f}x", f"{whole:.2f}x", f"{memory:.2f}x"])
    return rows


def losses(summaries):
    """First and last step's loss: all start at ln 2 (0.6931), which says that they ran the same job."""
    return [[s["config"], f"{s['losses'][0]:.6f}", f"{s['losses'][-1]:.6f}"] for s in summaries]


def markdown(job, machine, summaries, failures):
    pair_tokens = next((s["pair_tokens"] for s in summaries if s["pair_tokens"]), None)
    ours = [s for s in summaries if s["config"].startswith("fusedpo")]
    peers = [s for s in summaries if not s["config"].startswith("fusedpo")]
    text = [f"# fusedpo and TRL, {job['model']} on {job['device']}, {machine['date']}\n",
            f"{job['data']}: {job['pairs']} pairs in {job['groups']} prompts, {job['batch_size']} pairs a step, max_length "
            f"{job['max_length']}, learning rate 1e-6, beta 0.1; {job['repeats']} run(s) of each, medians.\n",
            "\n".join(f"- {key}: {value}" for key, value in machine.items() if key != "date") + "\n",
            table(["configuration", "s/step", "steps, s", "reference, s", "steps + reference, s", "all processes, s", "pairs/s",
                   "tokens/s", "peak memory, GB", "others' CPUs", "note"], [figures(s, pair_tokens) for s in summaries])]
    text.append("s/step: median after the first step. pairs/s and tokens/s: of the steps. Tokens are those of the pairs "
                "written out (2 prompts + chosen + rejected), the same number for all. Others' CPUs: what the rest of the "
                "machine used meanwhile. Losses at the first and the last step (the peers go in file order, fusedpo shuffles, so "
                "only the first must agree):\n")
    text.append(table(["configuration", "first", "last"], losses(summaries)))
    if ours and peers:
        text.append("How many times the peer's time and memory is fusedpo's, a pair:\n")
        text.append(table(["peer", "against", "steps", "steps + reference", "memory"], ratios(ours, peers)))
    text += [f"{config} failed: {reason}\n" for config, reason in failures.items()]
    return "\n".join(text)
