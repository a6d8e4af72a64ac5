#!/usr/bin/env bash
# Everything that jobs/evidence/README.md reports, and the same for other sizes, into runs/; after an
# interruption it goes on.
#   jobs/evidence/all.sh [SEED ...]     default: 0 1 2
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
[ $# -gt 0 ] || set -- 0 1 2
seeds=("$@")

run() { rise-ray run "$@" --resume; }

# table NAME [OVERRIDE ...]: the chosen settings with every seed, and what they come to.
table() {
  local name=$1 folders=()
  for seed in "${seeds[@]}"; do
    run jobs/evidence/test.yaml name="$name-$seed" seed="$seed" "${@:2}"
    folders+=("runs/$name-$seed")
  done
  rise-ray compare --seeds "${folders[@]}" --json "runs/$name.json" --picture "runs/$name.svg"
}

run jobs/evidence/dev.yaml
# The chosen settings in every iteration, not in the last alone.
run jobs/evidence/dev.yaml name=evidence-dev-hard train.lr=7.0e-4 \
  "recipe.rule={name: revision, answers: 4, wrong_weight: 2.0, wrong_tokens: 13, tau: null}" \
  "recipe.boost={epochs: 16, lr: 1.0e-3}" "controls=[{name: rejection_sampling, epochs: 16, lr: 1.0e-3}]"

table evidence
table evidence-250 problems=250
table evidence-1000 problems=1000

# A base model of four times as many parameters, which is not shipped.
larger=(model.scratch.architecture.hidden_size=256 model.scratch.architecture.intermediate_size=512)
run jobs/countdown_warmstart.yaml name=countdown-2m "${larger[@]}"
table evidence-2m model.path=runs/countdown-2m/checkpoints/iteration=0

python jobs/evidence/scaling.py runs/scaling.svg "250 problems=runs/evidence-250.json" \
  "500 problems=runs/evidence.json" "1,000 problems=runs/evidence-1000.json" \
  "500 problems, model x 4=runs/evidence-2m.json"
