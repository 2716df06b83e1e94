#!/usr/bin/env bash
# The long versions of the tests, round after round with a seed of its own each, until one fails or all have run:
#   SEED=n    seed of the whole soak (default 1); round r runs with SEED * 1000000 + r
#   ROUND=n   first round, to resume (default 0)
#   ROUNDS=n  how many (default 100)
#   FUZZ_SECONDS=n  of each test that fuzzes, in a round (default 120)
# A round that fails ends the soak, and the line before it says how to have it again. Figures go to docs/RELIABILITY.md.
set -euo pipefail
cd "$(dirname "$0")/../.."

seed=${SEED:-1}
first=${ROUND:-0}
last=$((first + ${ROUNDS:-100} - 1))
printf 'soak: commit %s, seed %s, rounds %s to %s\n' "$(git rev-parse --short HEAD)" "$seed" "$first" "$last"
for ((round = first; round <= last; round++)); do
    printf 'soak: round %s; to have it again: make soak SEED=%s ROUND=%s ROUNDS=1\n' "$round" "$seed" "$round"
    of_round=$((seed * 1000000 + round))
    SEED=$of_round CUSTODY_SEED=$of_round CUSTODY_ROUND=$((round * 1000000)) CUSTODY_ROUNDS=3000 \
        CUSTODY_QUESTIONS=1000000 CUSTODY_FUZZ_SECONDS=${FUZZ_SECONDS:-120} CUSTODY_KILLS=300 CUSTODY_MUTATED=20000 CUSTODY_AWAY_CALLS=360000 \
        cargo test --locked --workspace --quiet -- --nocapture
done
printf 'soak: %s rounds passed\n' "$((last - first + 1))"
