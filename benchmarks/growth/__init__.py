"""How cost grows with each size: processor time against it, in turns in one run.

  taskset -c 0 python -m benchmarks.growth --json_out=growth.json
  python -m benchmarks.growth.picture --results=growth.json --out=growth.png

`updates`, `rows` and `sessions` have the programs, `curves` runs them in turns
and makes exponents of what they took.
"""
