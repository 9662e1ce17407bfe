# Servers alone.
addresses {
  # The operator and the Consul beside it call it; the firewall says who else.
  http = "0.0.0.0"
}

server {
  enabled = true

  # Machines start together: whoever is first tries again soon.
  server_join {
    retry_interval = "2s"
  }

  job_gc_threshold        = "24h"
  deployment_gc_threshold = "24h"
  eval_gc_threshold       = "1h"
}

# A server that is gone is taken out of the quorum when another has come.
autopilot {
  cleanup_dead_servers      = true
  last_contact_threshold    = "1s"
  server_stabilization_time = "10s"
}
