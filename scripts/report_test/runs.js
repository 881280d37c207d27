// Folders of runs that were never made, for scripts/report_test.sh: two to be compared, one of a stranger's, one that is long.
const fs = require('fs');
const path = require('path');
const into = process.argv[2];

// The same numbers every time.
let seed = 7;
const noise = () => (seed = (seed * 1103515245 + 12345) % 2147483648) / 2147483648 - 0.5;

function metrics(steps, speed, strange) {
  const rows = [];
  for (let step = 0; step <= steps; step++) {
    const x = step / steps, gain = 1 - Math.exp(-speed * x);
    if (step > 0) {
      rows.push({
        step, loss: strange && step === 40 ? null : 0.69 - 0.25 * gain + 0.15 * noise() + (strange && step === 60 ? 400 : 0),
        grad_norm: 4 + 2 * noise() + (step === 150 ? 90 : 0), learning_rate: 1e-5 * (speed > 3 ? 20 : 1) * Math.min(1, x * 10) * (1 - x), epoch: x,
        entropy: 2 - 0.2 * gain + 0.2 * noise(), mean_token_accuracy: 0.55 + 0.1 * noise(),
        'rewards/chosen': -0.5 * gain + 0.4 * noise(), 'rewards/rejected': -1.6 * gain + 0.4 * noise(),
        'rewards/accuracies': Math.min(1, 0.5 + 0.3 * gain + 0.3 * noise()), 'rewards/margins': 1.1 * gain + 0.5 * noise(),
        'logps/chosen': -90 - 4 * gain + 20 * noise(), 'logps/rejected': -95 - 14 * gain + 20 * noise(),
        step_seconds: 0.11 + 0.02 * noise(), tokens_per_second: 9000 + 900 * noise(), pairs_per_second: 80 + 9 * noise(),
        peak_memory_bytes: 3e9 + 1e8 * gain,
      });
    }
    if (step % Math.ceil(steps / 6) === 0 || step === steps) {
      const row = { step };
      for (const [set, much] of [['', 1], ['terse_', 0.6]]) {
        const accuracy = 0.5 + 0.25 * gain * much;
        Object.assign(row, {
          [`eval_${set}loss`]: 0.69 - 0.2 * gain * much, [`eval_${set}loss_ci95`]: [0.66 - 0.2 * gain * much, 0.72 - 0.2 * gain * much],
          [`eval_${set}rewards/accuracies`]: accuracy, [`eval_${set}rewards/accuracies_ci95`]: [accuracy - 0.06, accuracy + 0.06],
          [`eval_${set}rewards/margins`]: gain * much, [`eval_${set}kl`]: 3 * gain * gain,
        });
      }
      rows.push(row);
    }
  }
  return rows.map(r => JSON.stringify(r) + '\n').join('');
}

const hostile = '</script><script>document.title="broken"</script><img src=x onerror=\'document.title="broken"\'>"\' \u202Egnp.exe\u2028&lt;';
function run(name, steps, speed, strange) {
  const folder = path.join(into, name), text = strange ? hostile : '';
  fs.mkdirSync(folder);
  fs.writeFileSync(path.join(folder, 'metrics.jsonl'), metrics(steps, speed, strange));
  const call = { version: '0.1.0', command: ['fusedpo', 'dpo', text], machine: { host: 'host', os: 'linux', arch: 'x86_64', cpus: 2 }, device: 'CPU, 2 threads' + text, dtype: 'f32', numerics: 'n' };
  fs.writeFileSync(path.join(folder, 'run.json'), JSON.stringify({
    outcome: strange ? 'failed' : 'finished', error: strange ? hostile : null, steps_done: steps, steps_asked: steps,
    start: '2026-11-01T10:00:00Z', end: '2026-11-01T10:31:00Z', ...call,
    options: { stage: 'dpo', model: 'sft' + text, data: '/nowhere', loss_type: ['sigmoid'], beta: speed > 3 ? 0.05 : 0.1, learning_rate: speed > 3 ? 2e-4 : 1e-5, seed: 0 },
    sha256: { data: 'a'.repeat(64), eval_data: null, model: 'b'.repeat(64), reference: 'b'.repeat(64), tokenizer: null, template: null },
    reference: 'the starting policy', resumptions: [],
  }));
  const sample = (row, prompt, reference, policy) => JSON.stringify({ step: steps, row, prompt, policy, policy_tokens: 19, policy_finished: true, reference, reference_tokens: 21, reference_finished: false }) + '\n';
  fs.writeFileSync(path.join(folder, 'samples.jsonl'), [
    sample(11, 'How do I say no politely?' + text, 'You can say no. Just say that you do not have time and that is that.' + text, 'You can say no kindly: thank them, say that you do not have time, and wish them well.' + text),
    sample(17, 'Name a river in France.', 'The Seine is a river in France, and the Loire is a river in France.', 'The Loire.'),
  ].join(''));
}
run('steady', 300, 2, false);
run('hasty', 240, 6, false);
run('hostile', 200, 3, true);
fs.mkdirSync(path.join(into, 'long'));
fs.writeFileSync(path.join(into, 'long', 'metrics.jsonl'), metrics(100000, 3, true));
