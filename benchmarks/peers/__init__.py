"""The learners beside other people's trainers, all in one run.

  python -m benchmarks.peers.install --out_dir=PEERS
  python -m benchmarks.peers --peers_dir=PEERS --json_out=peers.json

Each of the others runs in a process of its own, in an environment of its own:
`worker` answers there, `process` asks here. Of their code nothing is in this
repository: their modules are imported from checkouts at the commits of
`trainers`.
"""
