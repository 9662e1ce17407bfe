# Fast failure detection: a machine that is gone is excluded after 1 s instead of
# 5 s. Not for machines that may be starved of CPU, such as emulated ones.
gossip_lan {
  gossip_interval = "100ms"
  probe_interval  = "200ms"
  probe_timeout   = "100ms"
  suspicion_mult  = 2
}

performance {
  raft_multiplier = 1
}
