# Fast failure detection: a machine that is gone is seen after 4 s instead of
# 28 s. Not for machines that may be starved of CPU, such as emulated ones.
server {
  heartbeat_grace   = "1s"
  min_heartbeat_ttl = "2s"
  raft_multiplier   = 1
}
